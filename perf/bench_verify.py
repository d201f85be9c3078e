"""Certifies a checkpoint of 70B-sized layers a layer at a time: ``python -m shardyard.perf.bench_verify``.

The checkpoint has the tensors of Llama 3.1 70B and seeded random weights, but fewer layers (``--layers``): the memory
does not depend on their number. It prints seconds and the peak resident memory of each rank, to which the pages of the
files that it has read count; their sum is what must fit. Rank 0 runs the reference too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from shardyard.builder.convert import convert
from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.proof.certificate import read_certificate
from shardyard.builder.source.checkpoint import open_source
from shardyard.builder.verify import verify
from shardyard.console import Console, human_bytes
from shardyard.perf.synthetic_checkpoint import SHAPES, write_synthetic
from shardyard.pipeline_file import parse_pipeline

__all__ = ["main"]

#: Elements of the random block that weights are filled with.
_BLOCK = 1 << 24


def main(argv: list[str] | None = None) -> int:
    """Make, convert and verify the checkpoint; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench_verify", description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="layers of the checkpoint (2)")
    parser.add_argument("--tp", type=int, default=2, help="tensor parallel degree (2)")
    parser.add_argument("--work", type=Path, help="folder on the disk to use (a temporary one)")
    args = parser.parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        write_synthetic(folder / "source", SHAPES["70b"] | {"num_hidden_layers": args.layers}, sparse=True)
        _fill(folder / "source")
        raw = {"name": "bench", "model": {"checkpoint": str(folder / "source")}, "parallel": {"tp": args.tp}}
        pipeline = parse_pipeline(raw)
        convert(pipeline, folder / "checkpoint", console)
        began = time.perf_counter()
        verify(pipeline, folder / "checkpoint", folder / "certificate", console)
        seconds = time.perf_counter() - began
        peaks = read_certificate(folder / "certificate").numbers["peak_bytes_of_ranks"]
    rows = [(rank, human_bytes(peak)) for rank, peak in enumerate(peaks)]
    title = f"{args.layers} layers of Llama 3.1 70B, tp={args.tp}: verified in {seconds:.0f} s"
    console.table(title, ("rank", "peak resident memory"), [*rows, ("all", human_bytes(sum(peaks)))])
    return 0


def _fill(folder: Path) -> None:
    """Give every matrix random weights of a trained one's size, and every norm ones."""
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(_BLOCK, np.float32)
    for entry in open_source(folder).entries.values():
        scale = 1 / np.sqrt(entry.shape[-1])
        block = (noise * np.float32(scale)).astype(BY_NAME["bfloat16"])
        if len(entry.shape) == 1:
            block = np.ones(entry.shape, BY_NAME["bfloat16"])
        with entry.path.open("r+b") as file:
            file.seek(entry.start)
            left = entry.nbytes
            while left:
                left -= file.write(block.view(np.uint8).data[:left])


if __name__ == "__main__":
    raise SystemExit(main())
