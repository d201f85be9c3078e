"""Benchmarks convert against the disk: ``python -m shardyard.perf.bench_convert`` (``make bench-convert``).

Checkpoints with the tensors of Llama 3.1 8B and 70B (random bytes), and of 70B as sparse files (the source takes no
room), are converted at several tp, in turns with a plain ``cp`` of the source to the same disk (A B A B), all from a
cold page cache. Each converts in a process of its own, whose peak resident memory is the kernel's own figure (VmHWM).
The time of convert is that of the whole stage: hashing of source and rank files, and their way onto the disk (fsync),
included. ``cp`` does neither, and what it wrote may still be in memory when it ends; so a second column compares with
``cp`` followed by ``sync``, which is what the disk allows. Of sparse files convert hashes every byte and leaves pieces
that are all zero as holes; that row shows the work of the cores, not of the disk.

The embedding is cut too, so that the rank files together hold as many bytes as the source, and the copy, at every tp.
A model has as many layers as fit into a part of the free disk; ``--layers N`` and ``--full`` say otherwise. Memory does
not depend on their number.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardyard.console import Console, human_bytes
from shardyard.errors import ShardyardError, ToolchainError
from shardyard.perf.copy_costs import copy_costs
from shardyard.perf.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_synthetic

__all__ = ["main"]

#: Share of the free disk that one checkpoint may take, unless --full: source, rank files and copy are three.
_SHARE = 0.1
#: The largest default size in bytes, so that a run stays within minutes.
_MOST = 6_000_000_000
#: Name → shape, and whether its files are sparse.
CASES = {"8b": ("8b", False), "70b": ("70b", False), "70b-sparse": ("70b", True)}
_CHILD = """
import json, sys, time
from pathlib import Path
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.pipeline_file import parse_pipeline

source, out, tp = sys.argv[1:]
parallel = {"tp": int(tp), "use_parallel_embedding": True}
raw = {"name": "bench", "model": {"checkpoint": source}, "parallel": parallel}
began = time.perf_counter()
convert(parse_pipeline(raw), Path(out), Console(quiet=True))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "rchar": int(io["rchar"]), "wchar": int(io["wchar"]),
}))
"""


@dataclass
class Lane:
    """The rounds of one shape at one tp, or of cp: seconds; peak resident bytes; bytes read and written by calls."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    read: int = 0
    written: int = 0

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return float(statistics.median(self.seconds))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        for case in args.case:
            _bench(case, args, console)
        console.table(*copy_costs())
    except ShardyardError as error:
        console.error(str(error))
        return error.exit_code
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bench-convert"), help="on the disk to be measured")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES), help="models (all)")
    parser.add_argument("--tp", type=int, nargs="*", default=[1, 2, 8], help="degrees (1 2 8)")
    parser.add_argument("--layers", type=int, help="layers of each model; default: what fits")
    parser.add_argument("--full", action="store_true", help="all layers: three times the model must fit on the disk")
    parser.add_argument("--rounds", type=int, default=3, help="each is measured so many times")
    return parser


def _bench(case: str, args: argparse.Namespace, console: Console) -> None:
    shape, sparse = CASES[case]
    args.work.mkdir(parents=True, exist_ok=True)
    raw = SHAPES[shape] | {"num_hidden_layers": _layers(shape, args)}
    size, largest = checkpoint_bytes(raw)
    _check_disk(3 * size, args.work)
    source = args.work / case
    write_synthetic(source, raw, sparse=sparse)
    os.sync()
    lanes: dict[str | int, Lane] = {name: Lane() for name in ("cp", "cp and sync", *args.tp)}
    for _ in range(args.rounds):
        _copy(source, args.work / "copy", lanes, sparse)
        for tp in args.tp:
            _convert(source, args.work / "out", tp, lanes[tp])
    shutil.rmtree(source)
    kind = "sparse files" if sparse else "random bytes"
    console.table(
        f"{shape}, {raw['num_hidden_layers']} of {SHAPES[shape]['num_hidden_layers']} layers, {human_bytes(size)}, "
        f"{kind}; largest tensor {human_bytes(largest)}; medians of {args.rounds}, page cache cold",
        ("", "read", "written", "seconds", "min-max", "GB/s", "of cp", "of cp and sync", "peak memory", "limit"),
        list(_rows(lanes, size, largest)),
    )


def _layers(shape: str, args: argparse.Namespace) -> int:
    most = int(SHAPES[shape]["num_hidden_layers"])
    if args.full or args.layers:
        return min(most, args.layers or most)
    room = min(_MOST, _SHARE * shutil.disk_usage(args.work).free)
    base, one = (checkpoint_bytes(SHAPES[shape] | {"num_hidden_layers": layers})[0] for layers in (1, 2))
    return max(1, min(most, 1 + int((room - base) // (one - base))))


def _check_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ToolchainError(
            f"the benchmark needs {human_bytes(needed)} and the disk of {folder} has {human_bytes(free)} free",
            fix="choose fewer --layers, or another disk with --work",
        )


def _copy(source: Path, target: Path, lanes: dict[str | int, Lane], sparse: bool) -> None:
    """Copy with cp. Of sparse files every byte is copied, as convert does."""
    _make_cold(source)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", "--sparse=never" if sparse else "--sparse=auto", source, target], check=True)
    lanes["cp"].seconds.append(time.perf_counter() - began)
    for path in target.iterdir():
        _sync(path)
    lanes["cp and sync"].seconds.append(time.perf_counter() - began)
    shutil.rmtree(target)
    os.sync()


def _convert(source: Path, out: Path, tp: int, lane: Lane) -> None:
    _make_cold(source)
    script = [sys.executable, "-P", "-c", _CHILD, str(source), str(out), str(tp)]
    done: dict[str, Any] = json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout)
    lane.seconds.append(done["seconds"])
    lane.peak = max(lane.peak, done["peak"])
    lane.written = sum(path.stat().st_size for path in out.iterdir())
    lane.read = done["rchar"]
    shutil.rmtree(out)
    os.sync()


def _make_cold(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rows(lanes: dict[str | int, Lane], size: int, largest: int) -> list[tuple[object, ...]]:
    """Return a row per lane; the shares of cp are those of the bytes moved per second."""
    rates = {name: (lane.read + lane.written or 2 * size) / lane.median for name, lane in lanes.items()}
    return [
        (
            name if isinstance(name, str) else f"tp={name}",
            human_bytes(lane.read or size),
            human_bytes(lane.written or size),
            f"{lane.median:.2f}",
            f"{min(lane.seconds):.2f}–{max(lane.seconds):.2f}",
            f"{rates[name] / 1e9:.2f}",
            f"{rates[name] / rates['cp']:.0%}",
            f"{rates[name] / rates['cp and sync']:.0%}",
            human_bytes(lane.peak) if lane.peak else "",
            human_bytes(2 * largest + 200_000_000) if lane.peak else "",
        )
        for name, lane in lanes.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
