"""A median and how far it can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Median", "median_of"]

#: Half the width of a 95 % interval in standard deviations.
_WIDTH = 1.96


class Median(NamedTuple):
    """A sample's median, and the 95 % interval in which that of all possible measurements lies."""

    value: float
    low: float
    high: float


def median_of(values: Sequence[float]) -> Median:
    """Return the median with its interval, which supposes nothing of how the values are spread.

    So many values lie below the true median as coins of that number fall on one side: the interval's ends are the
    values of the ranks n / 2 ± 1.96 √n / 2, or the outermost ones where there are too few.

    Raises:
        statistics.StatisticsError: there are no values.
    """
    middle, ranked = statistics.median(values), sorted(values)
    half = _WIDTH * math.sqrt(len(ranked)) / 2
    low = max(0, math.floor(len(ranked) / 2 - half) - 1)
    high = min(len(ranked) - 1, math.ceil(len(ranked) / 2 + half))
    return Median(middle, ranked[low], ranked[high])
