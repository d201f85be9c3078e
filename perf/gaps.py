"""The time between the tokens of streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

__all__ = ["Span", "gaps_during"]

#: Its begin and its end, on the clock of the tokens' moments.
Span = tuple[float, float]


def gaps_during(streams: Sequence[Sequence[float]], span: Span) -> list[float]:
    """Return the seconds between neighbouring tokens of each stream of which any part falls into the span.

    A gap that reaches beyond the span counts with its whole length: what lengthened it lies in the span.
    """
    return [gap for times in streams for gap in _gaps(times, span)]


def _gaps(times: Sequence[float], span: Span) -> Iterator[float]:
    begin, end = span
    for before, after in pairwise(times):
        if begin < after and before < end:
            yield after - before
