"""A Hugging Face config.json as types, with everything refused that would change the maths unnoticed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.families import FAMILIES
from shardyard.builder.families.rules import Family
from shardyard.builder.rope import Rope, parse_rope
from shardyard.errors import CheckpointError

__all__ = ["HfConfig", "parse_config"]


@dataclass(frozen=True)
class HfConfig:
    """What a decoder's weights and maths depend on. Sizes are in elements; ``dtype`` None: the file names none."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    rope: Rope
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
    tied: bool
    dtype: str | None
    end_ids: tuple[int, ...]

    @property
    def flags(self) -> dict[str, bool]:
        """What the ``when`` of a family's rules may name."""
        names = ("qkv_bias", "dense_bias", "mlp_bias", "tied")
        return {"always": True, "untied": not self.tied} | {name: getattr(self, name) for name in names}

    @property
    def sizes(self) -> dict[str, int]:
        """What the shapes of a family's rules may name, in elements."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "inner": self.intermediate_size,
            "q": self.num_attention_heads * self.head_dim,
            "kv": self.num_key_value_heads * self.head_dim,
        }


#: Keys that change the maths, the values with which they do not, and what they ask for otherwise. A key that is
#: absent or null is always fine.
_REFUSED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("hidden_act", ("silu", "swish"), "another activation"),
    ("use_sliding_window", (False,), "sliding-window attention"),
    ("quantization_config", (), "weights that are quantized already"),
    ("partial_rotary_factor", (1, 1.0), "rotation of a part of each head"),
    ("rope_interleaved", (False,), "interleaved rotation"),
    ("attn_logit_softcapping", (), "soft-capped attention"),
    ("final_logit_softcapping", (), "soft-capped logits"),
    ("clip_qkv", (), "clipped queries, keys and values"),
    ("qk_layernorm", (False,), "normalised queries and keys"),
    ("use_qk_norm", (False,), "normalised queries and keys"),
    ("use_logn_attn", (False,), "log-n scaled attention"),
    ("use_mrope", (False,), "multimodal rotation"),
    ("attention_multiplier", (), "scaled attention"),
    ("embedding_multiplier", (1, 1.0), "scaled embeddings"),
    ("residual_multiplier", (1, 1.0), "scaled residuals"),
    ("logits_scaling", (1, 1.0), "scaled logits"),
    ("num_local_experts", (0,), "experts"),
    ("num_experts", (0,), "experts"),
    ("no_rope_layers", ([],), "layers without rotation"),
)


class _Keys:
    """Typed access to config.json; a wrong type is an error that names file, key and value."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw, self.path = raw, path

    def size(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            self._wrong(key, value, "a whole number above 0")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return bool(value)

    def _get(self, key: str, default: object) -> Any:
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(
                f"{self.path} has no {key}", why="the model's shape depends on it", fix="download the file again"
            )
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        raise CheckpointError(
            f"{self.path}: {key}={value!r} is not {wanted}",
            why="the model's shape and maths depend on it",
            fix="download the file again",
        )


def parse_config(raw: Mapping[str, Any], path: Path) -> HfConfig:
    """Turn the content of config.json (``path`` names it in errors) into types.

    Raises:
        CheckpointError: an unknown architecture, a missing or wrong value, or a key that is not supported.
    """
    family = _family(raw, path)
    raw = {**family.defaults, **{key: value for key, value in raw.items() if value is not None}}
    _refuse(raw, path)
    keys = _Keys(raw, path)
    heads, hidden = keys.size("num_attention_heads"), keys.size("hidden_size")
    bias = keys.flag("attention_bias", False)
    return HfConfig(
        family=family,
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        num_hidden_layers=keys.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(keys, heads),
        head_dim=_head_dim(keys, hidden, heads),
        vocab_size=keys.size("vocab_size"),
        max_position_embeddings=keys.size("max_position_embeddings"),
        rms_norm_eps=keys.number("rms_norm_eps"),
        hidden_act="silu",
        rope=parse_rope(raw, path),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        dense_bias=bias if family.dense_bias is None else family.dense_bias,
        mlp_bias=keys.flag("mlp_bias", False),
        tied=keys.flag("tie_word_embeddings", False),
        dtype=_dtype(raw, path),
        end_ids=_end_ids(raw, path),
    )


def _family(raw: Mapping[str, Any], path: Path) -> Family:
    named = raw.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else None
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name or "", FAMILIES, n=1, cutoff=0.0)
    raise CheckpointError(
        f"{path}: architecture {name!r} is not supported" if name else f"{path} names no architecture",
        why=f"supported: {', '.join(FAMILIES)}" + (f"; the nearest is {near[0]}" if name else ""),
        fix="give a checkpoint of one of these, or add a weight table to builder/families",
    )


def _refuse(raw: Mapping[str, Any], path: Path) -> None:
    wanted = [(key, raw[key], what) for key, fine, what in _REFUSED if key in raw and raw[key] not in fine]
    if raw.get("sliding_window") is not None and "use_sliding_window" not in raw:
        wanted.append(("sliding_window", raw["sliding_window"], "sliding-window attention"))
    kinds = raw.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        wanted.append(("layer_types", kinds, "layers other than full attention"))
    for key, value, what in wanted:
        raise CheckpointError(
            f"{path}: {key}={value!r} is not supported",
            why=f"it asks for {what}, which the engines would silently leave out",
            fix="use a checkpoint without it; if the weights were trained without it, remove the key",
        )


def _kv_heads(keys: _Keys, heads: int) -> int:
    kv_heads = keys.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{keys.path}: num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}",
            why="each key/value head serves the same number of query heads",
            fix="download the file again",
        )
    return kv_heads


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    if "head_dim" not in keys.raw and hidden % heads:
        raise CheckpointError(
            f"{keys.path}: num_attention_heads={heads} does not divide hidden_size={hidden}",
            why="the file gives no head_dim, so each head has hidden_size / num_attention_heads elements",
            fix="download the file again",
        )
    head_dim = keys.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise CheckpointError(
            f"{keys.path}: head_dim={head_dim} is odd",
            why="rotary embeddings turn pairs of elements",
            fix="download the file again",
        )
    return head_dim


def _dtype(raw: Mapping[str, Any], path: Path) -> str | None:
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in BY_NAME:
        raise CheckpointError(
            f"{path}: torch_dtype={value!r} is not supported",
            why=f"supported: {', '.join(BY_NAME)}",
            fix="save the checkpoint in one of these types",
        )
    return name


def _end_ids(raw: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    value = raw.get("eos_token_id", [])
    ids = tuple(value) if isinstance(value, list) else (value,)
    if any(type(token) is not int or token < 0 for token in ids):
        raise CheckpointError(
            f"{path}: eos_token_id={value!r} is not a token id or a list of them", fix="download the file again"
        )
    return ids
