"""What a conversion will move, take and need: bytes, time, memory, disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.layout.cutting import CuttingPlan, count_bytes
from shardyard.builder.sharder.piece_file import PARTS
from shardyard.builder.sharder.rank_files import default_workers
from shardyard.builder.sharder.safetensors_writer import COPY_BYTES
from shardyard.builder.sharder.source_run import BLOCK_BYTES
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.console import human_bytes
from shardyard.content_hash import PIECE_BYTES
from shardyard.errors import ArtifactError

__all__ = ["Estimate", "estimate", "free_bytes"]

#: Bytes read and written per second that the estimate of the time assumes: a plain NVMe disk.
ASSUMED_RATE = 1e9
#: Resident bytes of the interpreter with its libraries.
BASE_BYTES = 55_000_000


@dataclass(frozen=True)
class Estimate:
    """Bytes that are read and written, of the largest source tensor, of memory at the peak, and free on the disk."""

    read: int
    written: int
    largest: str
    largest_bytes: int
    memory: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether the rank files fit on the disk."""
        return self.written <= self.free

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        seconds = (self.read + self.written) / ASSUMED_RATE
        return [
            f"convert reads {human_bytes(self.read)} and writes {human_bytes(self.written)}, each byte once: about "
            f"{_duration(seconds)} at {ASSUMED_RATE / 1e9:g} GB/s in all (make bench-convert measures this machine)",
            f"largest tensor of the source: {self.largest} ({human_bytes(self.largest_bytes)}); "
            f"memory at the peak: about {human_bytes(self.memory)}",
        ]

    def check(self, out: Path) -> None:
        """Refuse before anything is written into ``out`` when the rank files cannot fit on its disk.

        Raises:
            ArtifactError: they cannot.
        """
        if not self.fits:
            raise ArtifactError(
                f"{out} needs {human_bytes(self.written)} and its disk has {human_bytes(self.free)} free",
                why="the rank files would not fit; nothing has been written",
                fix="free space, or choose another disk with --work",
            )


def estimate(source: SourceCheckpoint, plan: CuttingPlan, out: Path) -> Estimate:
    """Estimate the conversion of ``source`` by ``plan`` into ``out``.

    Each reader has a block, its cast, what it copies of that at a time, and pieces that are not whole yet; tensors that
    are transposed are held whole, one at a time, with their cast.
    """
    wanted = {name: source.entries[name] for name in plan.pieces}
    largest = max(wanted.values(), key=lambda entry: entry.nbytes)
    growth = max(BY_NAME[plan.dtype].itemsize / entry.dtype.itemsize for entry in wanted.values())
    casts = 0.0 if all(entry.dtype == BY_NAME[plan.dtype] for entry in wanted.values()) else growth
    whole = max(
        (wanted[name].nbytes for name, pieces in plan.pieces.items() if any(piece.transposed for piece in pieces)),
        default=0,
    )
    blocks = default_workers() * int(BLOCK_BYTES * (1 + casts) + COPY_BYTES + PARTS * PIECE_BYTES)
    return Estimate(
        read=sum(entry.nbytes for entry in wanted.values()),
        written=sum(sum(count_bytes(shapes, plan.dtype, plan.dtypes).values()) for shapes in plan.files),
        largest=largest.name,
        largest_bytes=largest.nbytes,
        memory=BASE_BYTES + blocks + int(whole * (1 + casts)),
        free=free_bytes(out),
    )


def free_bytes(out: Path) -> int:
    """Return what is free on the disk that will hold ``out``."""
    return shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
