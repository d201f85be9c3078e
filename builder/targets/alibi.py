"""ALiBi (Press et al. 2022, arXiv:2108.12409): positions as a penalty that grows with the distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["alibi_slopes", "penalties"]


def penalties(config: Mapping[str, Any], scale: float) -> tuple[float, ...]:
    """Return what a score loses per token of distance, for each head of a unified checkpoint; () without ALiBi.

    ``scale``: what scores are multiplied by; ``alibi_with_scale`` has it multiply the penalty as well.
    """
    factor = {"alibi": 1.0, "alibi_with_scale": scale}.get(config["position_embedding_type"])
    return () if factor is None else tuple(factor * slope for slope in alibi_slopes(config["num_attention_heads"]))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the slopes of a model's heads, in their order.

    Of a power of two: 2^(-8 / heads) and its powers. Otherwise those of the power of two below, and then every other
    one of twice as many heads: the paper's section 3, and what its authors' code does.
    """
    whole = 1 << (heads.bit_length() - 1)
    regular = [2.0 ** (-8 * number / whole) for number in range(1, whole + 1)]
    between = [2.0 ** (-4 * number / whole) for number in range(1, 2 * (heads - whole), 2)]
    return (*regular, *between)
