"""A Hugging Face config.json as types, with everything refused that would change the maths unnoticed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shardyard.builder.config.keys import ConfigKeys
from shardyard.builder.config.layer_kinds import (
    LayerKinds,
    parse_moe_layers,
    parse_sliding_layers,
    parse_sliding_window,
)
from shardyard.builder.config.refusals import refuse
from shardyard.builder.config.rope import Rope, parse_rope
from shardyard.builder.config.values import (
    read_dtype,
    read_end_ids,
    read_experts_per_token,
    read_head_dim,
    read_kv_heads,
)
from shardyard.builder.families import FAMILIES
from shardyard.builder.families.rules import Family
from shardyard.errors import CheckpointError

__all__ = ["HfConfig", "parse_config"]

#: Hugging Face's names of activations, and the function that they mean: all of the gelu_tanh ones are the same
#: approximation, written in another way.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
#: Fields that are true or false, and what they are where nothing gives them.
_SWITCHES = {
    "gated": True,
    "qkv_bias": False,
    "dense_bias": False,
    "mlp_bias": False,
    "tied": False,
    "parallel_residual": False,
    "qk_norm": False,
    "post_norms": False,
}
_NORMS = {"rms": "rms", "layer": "layer", "rms_plus_one": "rms_plus_one"}
_POSITIONS = {"rope": "rope", "learned": "learned", "alibi": "alibi"}


@dataclass(frozen=True)
class HfConfig:
    """What a decoder's weights and maths depend on. Sizes are in elements; ``dtype`` None: the file names none.

    ``norm``: rms, layer (with a bias) or rms_plus_one (the weights are stored less 1). ``hidden_act``: silu, relu, gelu
    or gelu_tanh; ``activation`` is its name in config.json; ``gated``: it multiplies a second branch. ``position``:
    rope, learned or alibi; ``rope`` is None where it is not rope; a learned table begins with ``position_offset`` rows
    that no position uses. ``parallel_residual``: attention and MLP read the same input, through ``parallel_norms`` (1
    or 2) norms. ``post_norms``: what attention and MLP write is normalised too. Scores are scaled by
    ``attention_scale``, embeddings by ``embedding_scale``; a softcap c makes x into c · tanh(x / c).
    """

    family: Family
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm: str
    norm_epsilon: float
    hidden_act: str
    activation: str
    gated: bool
    position: str
    position_offset: int
    rope: Rope | None
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
    tied: bool
    parallel_residual: bool
    parallel_norms: int
    qk_norm: bool
    post_norms: bool
    embedding_scale: float
    attention_scale: float
    attn_softcap: float | None
    final_softcap: float | None
    sliding_window: int | None
    sliding: LayerKinds
    num_experts: int
    experts_per_token: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool
    moe: LayerKinds
    dtype: str | None
    end_ids: tuple[int, ...]

    @property
    def moe_layers(self) -> tuple[bool, ...]:
        """Whether each layer has experts."""
        return self.moe.all(self.num_hidden_layers)

    @property
    def sliding_layers(self) -> tuple[bool, ...]:
        """Whether each layer sees the last ``sliding_window`` tokens only."""
        return self.sliding.all(self.num_hidden_layers)

    @property
    def flags(self) -> dict[str, bool]:
        """What the ``when`` of a family's rules may name, besides ``layer_flags``."""
        names = ("qkv_bias", "dense_bias", "mlp_bias", "tied", "qk_norm", "post_norms")
        return {
            "always": True,
            "untied": not self.tied,
            "sequential": not self.parallel_residual,
            "one_norm": self.parallel_norms == 1,
            "two_norms": self.parallel_norms == 2,
        } | {name: getattr(self, name) for name in names}

    def layer_flags(self, layer: int) -> dict[str, bool]:
        """Return what the ``when`` of a layer's rules may name about this layer."""
        moe = self.moe.holds(layer)
        return {"moe": moe, "dense": not moe, "shared": moe and self.shared_expert_intermediate_size > 0}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """What the shapes of a family's rules may name, in elements."""
        return {
            "one": 1,
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "inner": self.intermediate_size,
            "head": self.head_dim,
            "q": self.num_attention_heads * self.head_dim,
            "kv": self.num_key_value_heads * self.head_dim,
            "kv_heads": self.num_key_value_heads,
            "experts": self.num_experts,
            "expert_inner": self.moe_intermediate_size,
            "shared_inner": self.shared_expert_intermediate_size,
            "positions": self.max_position_embeddings,
            "position_offset": self.position_offset,
        }


def parse_config(raw: Mapping[str, Any], path: Path) -> HfConfig:
    """Turn the content of config.json (``path`` names it in errors) into types.

    Raises:
        CheckpointError: an unknown architecture, a missing or wrong value, or a key that is not supported.
    """
    family = _family(raw, path)
    refuse(raw, family, path)
    keys = ConfigKeys(raw, path, family)
    sizes: dict[str, Any] = {name: keys.size(name) for name in _SIZES}
    switches: dict[str, Any] = {name: keys.flag(name, default) for name, default in _SWITCHES.items()}
    heads, positions = sizes["num_attention_heads"], sizes["max_position_embeddings"]
    head_dim = read_head_dim(keys, sizes["hidden_size"], heads)
    position = keys.choice("position", _POSITIONS, "rope")
    return HfConfig(
        family=family,
        **sizes,
        **switches,
        **_experts(keys),
        num_key_value_heads=read_kv_heads(keys, heads),
        head_dim=head_dim,
        norm=keys.choice("norm", _NORMS, "rms"),
        norm_epsilon=keys.number("norm_epsilon"),
        hidden_act=keys.choice("hidden_act", _ACTIVATIONS, None),
        activation=str(keys.get("hidden_act")),
        position=position,
        position_offset=keys.count("position_offset"),
        rope=parse_rope(keys, head_dim, positions) if position == "rope" else None,
        parallel_norms=keys.size("parallel_norms", 1),
        embedding_scale=keys.number("embedding_scale", 1.0),
        attention_scale=keys.number("score_scalar", head_dim) ** -0.5,
        attn_softcap=keys.maybe_number("attn_softcap"),
        final_softcap=keys.maybe_number("final_softcap"),
        sliding_window=parse_sliding_window(keys),
        sliding=parse_sliding_layers(keys),
        dtype=read_dtype(raw, path),
        end_ids=read_end_ids(raw, path),
    )


def _experts(keys: ConfigKeys) -> dict[str, Any]:
    """Return the fields about experts."""
    experts = keys.count("num_experts")
    return {
        "num_experts": experts,
        "experts_per_token": read_experts_per_token(keys, experts),
        "moe_intermediate_size": keys.size("moe_intermediate_size") if experts else 0,
        "shared_expert_intermediate_size": keys.count("shared_expert_intermediate_size"),
        "norm_topk_prob": keys.flag("norm_topk_prob", False),
        "moe": parse_moe_layers(keys, experts),
    }


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
