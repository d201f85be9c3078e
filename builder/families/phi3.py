"""Phi-3 and Phi-4-mini: ``Phi3ForCausalLM``. The source fuses q, k, v, and gate with up.

TensorRT-LLM's network has one matrix for both branches of the MLP, with the linear branch (up) first.
"""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, HF, NORMS, TL
from shardyard.builder.families.rules import Cut, Family, Fused, Part, Rule

__all__ = ["PHI3"]

_QKV = tuple(
    Part(f"{HF}self_attn.qkv_proj.weight", rows, "hidden", Fused(("q", "kv", "kv"), at))
    for at, rows in enumerate(("q", "kv", "kv"))
)
_UP_GATE = tuple(
    Part(f"{HF}mlp.gate_up_proj.weight", "inner", "hidden", Fused(("inner", "inner"), at)) for at in (1, 0)
)
_DOWN = (Part(f"{HF}mlp.down_proj.weight", "hidden", "inner"),)
_DENSE = tuple(rule for rule in ATTENTION if rule.target.endswith("dense.weight"))

PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    table=(
        *(*ENDS, *NORMS, *_DENSE),
        Rule(f"{TL}attention.qkv.weight", Cut.ROWS, _QKV),
        Rule(f"{TL}mlp.fc.weight", Cut.ROWS, _UP_GATE),
        Rule(f"{TL}mlp.proj.weight", Cut.COLUMNS, _DOWN),
    ),
    defaults={"norm_epsilon": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu"},
    extras={
        "hidden_act": "swiglu",
        "rotary_pct": lambda config: config.rope.rotary_dim / config.head_dim,
    },
    fixed={"qkv_bias": False, "dense_bias": False, "mlp_bias": False},
    keys={"rotary_share": "partial_rotary_factor"},
    reads=frozenset({"sliding_window", "partial_rotary_factor", "rotary_share"}),
    refused=(("attention_bias", (False,), "biases in attention, which TensorRT-LLM's Phi-3 has not"),),
)
