"""Names of arrays that both the engine's builder and the network must know, as TensorRT-LLM has them."""

from __future__ import annotations

__all__ = ["EMBEDDING", "HEAD", "scale_name"]

EMBEDDING = "transformer.vocab_embedding.weight"
HEAD = "lm_head.weight"


def scale_name(weight: str) -> str:
    """Return the name of the scales of an int8 weight ``….weight``."""
    return f"{weight.removesuffix('weight')}per_channel_scale"
