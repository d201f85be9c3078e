"""plan, trace and doctor: verbs that look and change nothing."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from shardyard.cli.context import Context
from shardyard.console import human_bytes
from shardyard.errors import ArtifactError, UsageError
from shardyard.manifest import MANIFEST
from shardyard.spec import Pipeline

__all__ = ["doctor", "plan", "trace"]


def plan(args: argparse.Namespace) -> None:
    """Show what every rank will hold, or the fields of the pipeline file."""
    if args.fields:
        args.console.table("pipeline file", ["field", "default", "what it is"], list(_fields(Pipeline)))
        return
    if args.pipeline is None:
        raise UsageError("plan needs a pipeline file", fix="shardyard plan examples/demo.yaml, or plan --fields")
    context = Context.of(args)
    context.bring_headers()
    from shardyard.builder.plan import plan as make_plan

    made = make_plan(context.pipeline)
    context.console.table(made.title, made.columns, made.rows)
    for remark in made.remarks:
        context.console.say(remark)
    if context.pipeline.engine.target != "cpu":
        _plan_gpu(context)


def _plan_gpu(context: Context) -> None:
    """Show what fits into the GPUs that the pipeline file names."""
    from shardyard.builder.targets.gpu_model import model_of_source
    from shardyard.builder.targets.gpu_request import make_request
    from shardyard.builder.targets.limits import FORMULA

    request = make_request(context.pipeline, model_of_source(context.pipeline))
    budget = request.tightest
    context.console.table(f"memory of rank {budget.rank} on {request.machine}", ("line", "amount"), budget.rows)
    for line in (*FORMULA, f"tool chain: {request.toolchain}", *request.remarks):
        context.console.say(line)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{prefix}{name}.")
            continue
        default = "(required)" if field.is_required() else str(field.default)
        choices = _choices(annotation)
        text = field.description or ""
        yield prefix + name, default, f"{text}{' ' if text and choices else ''}{choices}"


def _choices(annotation: Any) -> str:
    """Return a Literal's values, those of a union's parts included."""
    if get_origin(annotation) in (types.UnionType,):
        return " ".join(filter(None, map(_choices, get_args(annotation))))
    values = [value for value in get_args(annotation) if isinstance(value, str | int)]
    return f"({' | '.join(map(str, values))})" if values else ""


def trace(args: argparse.Namespace) -> None:
    """Print an artifact's chain; with --check, hash everything again."""
    from shardyard.chain import check, walk

    links = walk(args.path)
    for link in links:
        manifest = link.manifest
        size = sum(stamp.size for stamp in manifest.outputs.values())
        args.console.result(f"{manifest.stage:<8} {link.folder}  ({human_bytes(size)}, {manifest.created})")
        tools = ", ".join(f"{name} {version}" for name, version in manifest.toolchain.items())
        args.console.result(f"         key {manifest.key[:16]}  {tools}")
    args.console.result(f"{'source':<8} {links[-1].source}")
    for name, stamp in links[-1].manifest.inputs.items():
        args.console.result(f"         {stamp.digest[:23]}  {name} ({human_bytes(stamp.size)})")
    if not args.check:
        return
    wrong = check(links)
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} file(s) of the chain are not what their {MANIFEST} says",
            why="; ".join(wrong),
            fix="make the first damaged stage again; if it is the source, restore it",
        )
    args.console.result("every hash is as recorded")


def doctor(args: argparse.Namespace) -> int:
    """Print every check; the status is 4 when the main job cannot work on this machine."""
    from shardyard.doctor import examine
    from shardyard.errors import ToolchainError

    faults = 0
    marks = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}
    for finding in examine():
        args.console.result(f"{marks[finding.level]} {finding.check:<14} {finding.found}")
        if finding.fix:
            args.console.result(f"      {'':<14} fix: {finding.fix}")
        faults += finding.level == "fault"
    return ToolchainError.exit_code if faults else 0
