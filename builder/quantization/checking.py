"""Whether the tensors of rank files that were made, not cut, are what the source makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shardyard.builder.quantization.rank_file import RankFile
from shardyard.builder.quantization.rank_plan import RankPlan

__all__ = ["made_faults"]


def made_faults(plan: RankPlan, files: Sequence[RankFile | None]) -> Iterator[str]:
    """Yield what is missing, misshapen or different, bit for bit; ``files`` are None where they cannot be read."""
    for made in plan.cutting.made:
        for number, name, array in made.make():
            file = files[number]
            if file is None:
                continue
            entry = file.stored.get(name)
            if entry is None:
                yield f"{file.path.name}: {name} is missing"
            elif (entry.shape, entry.dtype) != (array.shape, array.dtype):
                yield f"{file.path.name}: {name} is {entry.code} {list(entry.shape)}; it must be {list(array.shape)}"
            elif not np.array_equal(file.stored_array(name).view(np.uint8), np.ascontiguousarray(array).view(np.uint8)):
                yield f"{file.path.name}: {name} differs from {', '.join(_sources(made.sources))}"


def _sources(names: Sequence[str]) -> Sequence[str]:
    return names if len(names) <= 3 else (*names[:2], f"{len(names) - 2} more")
