"""convert: the same bytes each time, each read once, in bounded memory; skipped, refused or killed, never half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert, convert_checkpoint
from shardyard.console import Console
from shardyard.content_hash import PIECE_BYTES, hash_file
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.manifest import MANIFEST, read_manifest
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import ParallelSpec, Pipeline

Write = Callable[..., Path]
QUIET = Console(quiet=True)
#: Wider than any one block in the tests below: a checkpoint of about 70 MB.
BIG = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 4001, "num_attention_heads": 8}


def pipeline(checkpoint: Path, **sections: Any) -> Pipeline:
    return parse_pipeline({"name": "t", "model": {"checkpoint": str(checkpoint)}, **sections})


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir() if path.name != MANIFEST and path.is_file()}


@pytest.mark.parametrize("degrees", [{"tp": 2, "pp": 2}, {"tp": 4}], ids=str)
def test_the_same_bytes_twice_and_from_any_number_of_files(
    write_checkpoint: Write, tmp_path: Path, degrees: dict[str, int]
) -> None:
    outs = []
    for number, shards in enumerate((1, 1, 4)):
        source = write_checkpoint(tmp_path / f"source{number}", shards=shards)
        outs.append(tmp_path / f"out{number}")
        outs[-1].mkdir()
        convert_checkpoint(source, outs[-1], ParallelSpec(**degrees))
    assert digests(outs[0]) == digests(outs[1]) == digests(outs[2])


def test_a_value_that_float16_cannot_hold(write_checkpoint: Write, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3] = 1e6

    source = write_checkpoint(tmp_path / "source", change=change)
    with pytest.raises(CheckpointError) as caught:
        convert(pipeline(source, engine={"dtype": "float16"}), tmp_path / "out", QUIET)
    assert "model.norm.weight" in caught.value.what
    assert "1e+06" in caught.value.why
    assert "bfloat16" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_the_stage_is_skipped_until_something_changes(write_checkpoint: Write, tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "source"), tmp_path / "out"
    assert convert(pipeline(source), out, QUIET).reason == "not made yet"
    assert convert(pipeline(source), out, QUIET).fresh
    assert convert(pipeline(source, engine={"max_batch_size": 3}), out, QUIET).fresh
    tp2 = convert(pipeline(source, parallel={"tp": 2}), out, QUIET)
    assert tp2.reason == "setting parallel.tp changed: 1 → 2"
    assert len(list(out.glob("rank*.safetensors"))) == 2
    assert "dtype changed" in str(
        convert(pipeline(source, parallel={"tp": 2}, engine={"dtype": "bfloat16"}), out, QUIET).reason
    )
    quantized = convert(pipeline(source, quantization="w8a16"), out, QUIET)
    assert json.loads((out / "config.json").read_text())["quantization"]["quant_algo"] == "W8A16"
    write_checkpoint(source, seed=1)
    again = convert(pipeline(source, quantization="w8a16"), out, QUIET)
    assert again.reason == "input model.safetensors changed"
    assert again.manifest.key != quantized.manifest.key


def test_another_source_with_the_same_sizes_and_times_is_hashed(write_checkpoint: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed in (0, 1):
        source = write_checkpoint(tmp_path / f"source{seed}", seed=seed)
        for path in source.iterdir():
            os.utime(path, ns=(1, 1))
    assert not convert(pipeline(tmp_path / "source0"), out, QUIET).fresh
    assert not convert(pipeline(tmp_path / "source1"), out, QUIET).fresh


def test_a_full_disk_is_found_before_anything_is_written(
    write_checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shardyard.builder.estimate.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ArtifactError, match=r"1\.00 kB free"):
        convert(pipeline(source), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


MEASURED = """
import resource, sys
from pathlib import Path
from shardyard.builder.convert import convert_checkpoint
from shardyard.spec import ParallelSpec

def moved():
    return [int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines()[:2]]

before, peak = moved(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), ParallelSpec(tp=4))
read, wrote = (now - then for now, then in zip(moved(), before))
print(read, wrote, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024)
"""


def test_each_byte_is_read_and_written_once_in_bounded_memory(write_checkpoint: Write, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", {**BIG, "tie_word_embeddings": True})
    size = (source / "model.safetensors").stat().st_size
    assert size > 50e6
    (tmp_path / "out").mkdir()
    script = [sys.executable, "-P", "-c", MEASURED, str(source), str(tmp_path / "out")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    read, wrote, grown = map(int, done.stdout.split())
    made = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    # Of the pieces where two tensors meet, some are written twice, and read back to be hashed.
    assert made - 10_000 < wrote < made + 60 * PIECE_BYTES
    assert size <= read < size + 60 * PIECE_BYTES
    assert grown < 40e6  # A block of 8 MiB and one cut of it, some pieces, and threads.


CONVERT = """
import sys
from pathlib import Path
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.pipeline_file import parse_pipeline

raw = {"name": "t", "model": {"checkpoint": sys.argv[1]}, "parallel": {"tp": 2}}
print("ready", flush=True)
convert(parse_pipeline(raw), Path(sys.argv[2]), Console(quiet=True))
"""


def _is_there(folder: Path, pattern: str) -> bool:
    try:
        return any(folder.glob(pattern))
    except FileNotFoundError:  # A folder got its last name while it was looked into.
        return False


@pytest.mark.parametrize("old", [True, False], ids=["over an old artifact", "over nothing"])
@pytest.mark.parametrize("after", ["rank1.safetensors", "config.json", "manifest"])
def test_kill_9_leaves_the_old_artifact_or_none(write_checkpoint: Write, tmp_path: Path, old: bool, after: str) -> None:
    source, out = write_checkpoint(tmp_path / "source", BIG), tmp_path / "out"
    if old:
        convert(pipeline(source), out, QUIET)
    before = digests(out) if old else {}
    script = [sys.executable, "-P", "-c", CONVERT, str(source), str(out)]
    with subprocess.Popen(script, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 30
        pattern = ".out.staging-*/.manifest.json*" if after == "manifest" else f".out.staging-*/{after}"
        while not _is_there(tmp_path, pattern) and child.poll() is None and time.monotonic() < deadline:
            pass
        child.send_signal(signal.SIGKILL)
    if out.exists():
        manifest = read_manifest(out, "convert")
        assert digests(out) == {name: stamp.digest for name, stamp in manifest.outputs.items()}
        assert digests(out) == before or manifest.settings["parallel"]["tp"] == 2
    else:
        assert not old
    assert convert(pipeline(source, parallel={"tp": 2}), out, QUIET).manifest.settings["parallel"]["tp"] == 2
    assert [path.name for path in tmp_path.iterdir() if "staging" in path.name] == []
