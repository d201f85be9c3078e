"""The statistics that a report gives of a list of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Distribution", "distribution"]


@dataclass(frozen=True)
class Distribution:
    """Count, mean, standard deviation (population), extremes, and percentiles by linear interpolation."""

    count: int
    mean: float
    std: float
    min: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float

    def to_json(self) -> dict[str, float]:
        """Return the fields as they go into results.json."""
        return asdict(self)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Return the statistics of ``values``; None when there are none."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    percentiles = (float(value) for value in np.percentile(array, (50, 90, 95, 99)))
    low, high = float(array.min()), float(array.max())
    # Rounding in the sum may put the mean of equal values a hair outside of them.
    mean = min(high, max(low, float(array.mean())))
    return Distribution(len(array), mean, float(array.std()), low, high, *percentiles)
