"""Qwen3-MoE: ``Qwen3MoeForCausalLM``. Qwen3's attention, Qwen2-MoE's experts without a shared one."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, MLP, NORMS, QK_NORMS, experts
from shardyard.builder.families.qwen2 import DEFAULTS, EXTRAS
from shardyard.builder.families.qwen3 import FIXED, HEAD, REFUSED
from shardyard.builder.families.rules import Family

__all__ = ["QWEN3_MOE"]

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    table=(
        *(*ENDS, *NORMS, *ATTENTION, *QK_NORMS, *MLP),
        *experts("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ),
    defaults={**DEFAULTS, **HEAD, "num_experts": 128, "experts_per_token": 8, "moe_intermediate_size": 768},
    extras={**EXTRAS, "qwen_type": "qwen3_moe", "hidden_act": "swiglu", "qk_layernorm": True},
    fixed=FIXED,
    # transformers 5 writes the other name.
    derive=lambda raw: {"num_experts": raw.get("num_experts", raw.get("num_local_experts"))},
    reads=frozenset({"num_experts", "num_local_experts"}),
    refused=REFUSED,
)
