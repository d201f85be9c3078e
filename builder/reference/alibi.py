"""ALiBi (Press et al. 2022, arXiv:2108.12409): what a score loses for each token that its key lies further back."""

from __future__ import annotations

__all__ = ["slopes"]


def slopes(heads: int) -> list[float]:
    """Return one slope per head.

    A power of two has a geometric series that ends with 2^-8. Others have the series of the largest power of two below
    them, followed by the odd terms of the next one's.
    """
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** (-8.0 / heads)
        return [ratio ** (head + 1) for head in range(heads)]
    power = 1 << (heads.bit_length() - 1)
    return slopes(power) + slopes(2 * power)[::2][: heads - power]
