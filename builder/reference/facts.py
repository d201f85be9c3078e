"""What the maths of a checkpoint depends on besides its weights, read from config.json for the reference alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.builder.reference.activations import ACTIVATIONS
from shardyard.builder.reference.alibi import slopes
from shardyard.builder.reference.architecture import Architecture
from shardyard.builder.reference.families import FAMILIES, resolve
from shardyard.builder.reference.rotary import Rotary, read_rotary
from shardyard.errors import CheckpointError

__all__ = ["Facts", "read_facts"]


@dataclass(frozen=True)
class Facts:
    """Sizes are in elements; ``windows`` and ``sparse`` have one item per layer; a window of None reaches to the start.

    ``attention_scale`` multiplies the scores, which ``score_cap`` then bounds as ``logit_cap`` does the logits;
    ``slopes`` are ALiBi's of each head, times this scale, where positions are known by them.
    """

    architecture: Architecture
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    tied: bool
    rotary: Rotary | None
    slopes: tuple[float, ...] | None
    windows: tuple[int | None, ...]
    attention_scale: float
    score_cap: float | None
    logit_cap: float | None
    experts_per_token: int
    normed_experts: bool
    sparse: tuple[bool, ...]


def read_facts(raw: Mapping[str, Any], path: Path) -> Facts:
    """Read the content of config.json, which ``path`` names in errors.

    Raises:
        CheckpointError: the reference cannot compute what it asks for.
    """
    name = str((raw.get("architectures") or [None])[0])
    if name not in FAMILIES:
        raise _cannot(path, "architectures", name)
    architecture = resolve(name, raw)
    for key, fine in architecture.refused.items():
        if raw.get(key) not in (None, fine):
            raise _cannot(path, key, raw[key])
    keys = _common(raw, architecture)
    if raw.get("word_embed_proj_dim") not in (None, keys["hidden_size"]):
        raise _cannot(path, "word_embed_proj_dim", raw["word_embed_proj_dim"])
    heads, layers = int(keys["num_attention_heads"]), int(keys["num_hidden_layers"])
    head_dim = int(keys.get("head_dim") or keys["hidden_size"] // heads)
    scale, alibi = 1 / math.sqrt(keys.get("query_pre_attn_scalar", head_dim)), bool(keys.get("alibi"))
    return Facts(
        architecture=architecture,
        layers=layers,
        hidden=int(keys["hidden_size"]),
        heads=heads,
        kv_heads=_kv_heads(keys, heads),
        head_dim=head_dim,
        epsilon=float(keys.get("norm_epsilon") or keys["rms_norm_eps"]),
        activation=_activation(keys, path),
        tied=bool(keys.get("tie_word_embeddings", False)),
        rotary=None if alibi or architecture.names.positions else read_rotary(keys, head_dim, path),
        slopes=tuple(scale * slope for slope in slopes(heads)) if alibi else None,
        windows=_windows(keys, architecture, layers, path),
        attention_scale=scale,
        score_cap=keys.get("attn_logit_softcapping"),
        logit_cap=keys.get("final_logit_softcapping"),
        experts_per_token=int(keys.get("num_experts_per_tok", 0)),
        normed_experts=bool(keys.get("norm_topk_prob", False)),
        sparse=tuple(_sparse(keys, architecture, layer) for layer in range(layers)),
    )


def _cannot(path: Path, key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: the reference cannot compute {key}={value!r}",
        why="leaving it out would compare the rank files with another model",
        fix="add it to builder/reference; until then these rank files cannot be verified",
    )


def _common(raw: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Return config.json with the common names of its keys and the family's defaults; null is the same as absent."""
    given = {key: value for key, value in raw.items() if value is not None}
    given |= {common: given[own] for common, own in architecture.keys.items() if own in given}
    nulled = {key: None for key in _NULLABLE if key in raw and raw[key] is None}
    return {**architecture.defaults, **given, **nulled}


#: Keys in which null is a value of its own: none, or for heads as many as there are query heads.
_NULLABLE = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "num_key_value_heads")


def _activation(keys: Mapping[str, Any], path: Path) -> str:
    name = str(keys["hidden_act"])
    if str(keys.get("model_type")) == "gemma" and name == "gelu":
        # The first Gemma's files say gelu and mean its approximation.
        name = "gelu_pytorch_tanh"
    if name not in ACTIVATIONS:
        raise _cannot(path, "hidden_act", name)
    return name


def _kv_heads(keys: Mapping[str, Any], heads: int) -> int:
    # Falcon's older decoder has one key/value head or as many as query heads, and no key that says which but this.
    if "multi_query" in keys and not keys.get("new_decoder_architecture"):
        return 1 if keys["multi_query"] else heads
    return int(keys.get("num_key_value_heads") or heads)


def _windows(keys: Mapping[str, Any], architecture: Architecture, layers: int, path: Path) -> tuple[int | None, ...]:
    """Return how many tokens, its own included, a token of each layer attends to."""
    every, first = architecture.sliding_every, 0
    window = keys.get("sliding_window") if every else None
    if architecture.sliding_switch:
        window = window if keys.get("use_sliding_window") else None
        first = int(keys.get("max_window_layers", 28))
    slides = [window is not None and layer >= first and layer % every == 0 for layer in range(layers)]
    kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    if keys.get("layer_types", kinds) != kinds:
        raise _cannot(path, "layer_types", keys["layer_types"])
    return tuple(int(window) if slide and window else None for slide in slides)


def _sparse(keys: Mapping[str, Any], architecture: Architecture, layer: int) -> bool:
    if architecture.names.experts is None or layer in keys.get("mlp_only_layers", []):
        return False
    return (layer + 1) % int(keys.get("decoder_sparse_step", 1)) == 0
