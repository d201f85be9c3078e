"""What a family is to the reference: the names of its tensors, and how its blocks are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Architecture", "Experts", "Names"]


@dataclass(frozen=True)
class Experts:
    """Names within a layer: the router, and of the experts and shared expert, of which {} is the expert's number."""

    router: str
    gate: str
    up: str
    down: str
    shared: str | None = None
    shared_gate: str | None = None


@dataclass(frozen=True)
class Names:
    """Names of tensors without ``.weight`` and ``.bias``; those from ``layer`` on are within a layer.

    ``qkv`` has one name or three. ``gate`` None: the MLP has no gate; ``gate_up`` holds gate and up in one, gate first.
    ``attention_out_norm`` and ``mlp_out_norm`` are applied to what a branch gives before it is added.
    """

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str | None = None
    k_norm: str | None = None
    out: str = "self_attn.o_proj"
    attention_out_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str | None = None
    down: str = "mlp.down_proj"
    mlp_out_norm: str | None = None
    experts: Experts | None = None


@dataclass(frozen=True)
class Architecture:
    """One family.

    ``prefix`` begins all names but the head's and is missing in some checkpoints. ``norm`` names a function of
    ``norms``. ``fused`` is the order of a ``qkv`` of one tensor: "stacked" (all q, all k, all v) or "grouped" (q, k, v
    of the first key/value head, then of the second, …). ``transposed``: matrices are stored [in, out]. ``parallel``:
    attention and MLP read the same input. ``sliding_every``: every so many layers, from the first, have the sliding
    window, if there is one; 0: none have. ``sliding_switch``: only where use_sliding_window says so, and from layer
    max_window_layers on. ``keys`` are the family's own names of config.json's common keys,
    ``defaults`` the values of common keys that its config.json may leave out, ``refused`` the keys whose other values
    the reference cannot compute, with the value that it can.
    """

    names: Names = field(default_factory=Names)
    prefix: str = "model."
    norm: str = "rms"
    fused: str = "stacked"
    transposed: bool = False
    parallel: bool = False
    embedding_scaled: bool = False
    position_offset: int = 0
    sliding_every: int = 0
    sliding_switch: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, object] = field(default_factory=dict)
