"""Names of arrays that both the engine's builder and the network must know, as TensorRT-LLM has them."""

from __future__ import annotations

__all__ = ["EMBEDDING", "FINAL_NORM", "HEAD", "POSITIONS", "group_scale_name", "scale_name", "zero_name"]

EMBEDDING = "transformer.vocab_embedding.weight"
POSITIONS = "transformer.position_embedding.weight"
#: The norm before the head, without ``.weight`` and ``.bias``.
FINAL_NORM = "transformer.ln_f"
HEAD = "lm_head.weight"


def scale_name(weight: str) -> str:
    """Return the name of the scales of an int8 weight ``….weight``."""
    return f"{weight.removesuffix('weight')}per_channel_scale"


def group_scale_name(weight: str) -> str:
    """Return the name of the scales of a weight ``….weight`` in groups."""
    return f"{weight.removesuffix('weight')}weights_scaling_factor"


def zero_name(weight: str) -> str:
    """Return the name of the zero points of a weight ``….weight`` in groups."""
    return f"{weight.removesuffix('weight')}zero"
