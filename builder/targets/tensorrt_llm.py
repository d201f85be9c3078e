"""Target tensorrt_llm: rank files into TensorRT engines by trtllm-build, or the commands that would make them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardyard import __version__
from shardyard.artifacts import Draft
from shardyard.atomic import write_atomically
from shardyard.builder.proof.certificate import stamp_checkpoint
from shardyard.builder.source.checkpoint import read_json
from shardyard.builder.targets.containers import RUNNERS
from shardyard.builder.targets.converted import check_degrees, stale_settings
from shardyard.builder.targets.gpu_here import check_machine, find_programs
from shardyard.builder.targets.gpu_model import model_of_checkpoint, model_of_source
from shardyard.builder.targets.gpu_request import GpuRequest, make_request
from shardyard.builder.targets.limits import FORMULA
from shardyard.builder.targets.trtllm_commands import BuildFolder, printed, world_command
from shardyard.builder.targets.trtllm_engine import COLUMNS, check_engine
from shardyard.builder.targets.trtllm_overrides import FlagInEffect, expected_overrides
from shardyard.builder.targets.trtllm_ranks import build_ranks
from shardyard.console import Console
from shardyard.errors import ArtifactError
from shardyard.manifest import FileStamp, content_key, is_artifact, read_manifest
from shardyard.spec import Pipeline
from shardyard.stage import StageResult, run_stage

__all__ = ["REPORT", "build_tensorrt_llm", "show_tensorrt_llm"]

STAGE = "build"
#: What TensorRT-LLM's config.json does not say: the machine, the tool chain, and each flag as asked and in effect.
REPORT = "build_report.json"


def build_tensorrt_llm(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> StageResult:
    """Build one engine per rank with trtllm-build, unless ``out`` holds them already.

    Raises:
        ArtifactError: ``checkpoint`` is unfinished or for other degrees; the engine folder is not as it must be.
        PipelineError: the request cannot work on the machine that the pipeline file names.
        ToolchainError: this machine or its tools are not those that the engine is for.
        RankError: a rank could not be built.
    """
    inputs = _rank_files(pipeline, checkpoint)
    request = make_request(pipeline, model_of_checkpoint(pipeline, checkpoint))
    _warn(request, console)
    settings = {"target": "tensorrt_llm", "flags": dict(request.flags), "gpu": request.machine.gpu.name}
    # Not this program's Python: hours of GPU time must not hang on its patch level.
    toolchain = {
        "shardyard": __version__,
        **request.toolchain.describe(),
        "image": request.image,
        "sm": str(request.machine.gpu.sm),
    }
    key = content_key(STAGE, inputs, settings, toolchain)

    def work(draft: Draft) -> None:
        here = check_machine(request, console)
        programs = find_programs(request)
        folder = BuildFolder(_build_root(out))
        _open_folder(folder, key)
        build_ranks(request, checkpoint.resolve(), folder, programs, console)
        flags = check_engine(request, folder.engine)
        _show_flags(flags, console)
        for name in ("config.json", *(f"rank{rank}.engine" for rank in range(request.ranks))):
            shutil.move(folder.engine / name, draft.folder / name)
        write_atomically(draft.folder / REPORT, json.dumps(_report(request, here, flags), indent=1) + "\n")

    return run_stage(STAGE, out, checkpoint, inputs, settings, toolchain, work, console)


def show_tensorrt_llm(pipeline: Pipeline, checkpoint: Path, out: Path, console: Console) -> None:
    """Print the commands of a build as a shell script, with the calculation in comments; nothing is run or written.

    Converted rank files are not needed: config.json of the source, and its index if there is one, tell enough.

    Raises:
        PipelineError: the request cannot work on the machine that the pipeline file names.
        CheckpointError: the source's config is missing, broken or not supported.
    """
    current = is_artifact(checkpoint) and not stale_settings(pipeline, read_manifest(checkpoint, "convert"))
    model = model_of_checkpoint(pipeline, checkpoint) if current else model_of_source(pipeline)
    request = make_request(pipeline, model)
    folder = BuildFolder(_build_root(out))
    for line in _script(request, checkpoint.resolve(), folder):
        console.result(line)


def _rank_files(pipeline: Pipeline, checkpoint: Path) -> dict[str, FileStamp]:
    """Return the stamps of rank files, checked as far as their origin allows: another converter leaves no manifest."""
    ours = is_artifact(checkpoint) or not (checkpoint / "config.json").is_file()
    made = read_manifest(checkpoint, "convert") if ours else None
    check_degrees(read_json(checkpoint / "config.json").get("mapping") or {}, pipeline.parallel, checkpoint)
    if made is None:
        return stamp_checkpoint(checkpoint)
    if stale := stale_settings(pipeline, made):
        raise ArtifactError(
            f"{checkpoint} was converted with other settings",
            why=f"changed since: {', '.join(stale)}",
            fix="run shardyard convert again",
        )
    return made.outputs


def _build_root(out: Path) -> Path:
    return out.absolute().with_name(f"{out.name}.build").resolve()


def _open_folder(folder: BuildFolder, key: str) -> None:
    """Keep what an interrupted build of the same key has made; start over for another one. Timing caches stay."""
    if not folder.key.is_file() or folder.key.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder.engine, ignore_errors=True)
        shutil.rmtree(folder.logs, ignore_errors=True)
    for path in (folder.engine, folder.logs, folder.timing):
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.key, key)


def _warn(request: GpuRequest, console: Console) -> None:
    for remark in request.remarks:
        console.warn(remark)
    for flag in expected_overrides(request.flags, request.model, request.machine.gpu.sm):
        console.warn(_override(flag))


def _override(flag: FlagInEffect) -> str:
    return f"trtllm-build will turn {flag.name}={flag.asked} into {flag.effect}: {flag.why}"


def _show_flags(flags: list[FlagInEffect], console: Console) -> None:
    if not console.quiet:
        console.table("flags of the engine", COLUMNS, [flag.row for flag in flags])
    for flag in flags:
        if flag.changed:
            console.warn(f"{flag.name}: asked {flag.asked}, in effect {flag.effect} ({flag.why})")


def _report(request: GpuRequest, here: dict[str, str], flags: list[FlagInEffect]) -> dict[str, Any]:
    machine, budget = request.machine, request.tightest
    return {
        "toolchain": {**request.toolchain.describe(), "image": request.image},
        "machine": {"asked": machine.name, "gpu": machine.gpu.name, "sm": machine.gpu.sm, **here},
        "flags": [{"flag": f.name, "asked": f.asked, "effect": f.effect, "why": f.row[3]} for f in flags],
        "memory": {"rank": budget.rank, "kv_tokens": budget.kv_tokens, "kv_bytes_per_token": budget.kv_token},
    }


def _script(request: GpuRequest, checkpoint: Path, folder: BuildFolder) -> Iterator[str]:
    budget, engine = request.tightest, request.pipeline.engine
    yield "#!/bin/bash"
    yield f"# {request.model.title}"
    yield f"# {request.machine}"
    yield f"# {request.toolchain}"
    yield f"# memory of the tightest rank, {budget.rank}:"
    yield from (f"#   {name:<24} {value:>12}" for name, value in budget.rows)
    yield from (f"#   {line}" for line in FORMULA)
    yield f"# the cache is to hold {request.cache_tokens} tokens, and {budget.kv_tokens} fit"
    yield from (f"# note: {remark}" for remark in request.remarks)
    for flag in expected_overrides(request.flags, request.model, request.machine.gpu.sm):
        yield f"# note: {_override(flag)}"
    yield "set -euo pipefail"
    yield shlex.join(["mkdir", "-p", str(folder.engine), str(folder.logs), str(folder.timing)])
    prepared = RUNNERS[engine.runner].prepare(request.image, folder.root)
    if prepared:
        yield f"test -f {shlex.quote(str(prepared[0]))} || {printed(prepared[1])}"
    yield printed(world_command(request, checkpoint, folder, range(request.ranks)))
