"""Mistral: ``MistralForCausalLM``. Llama's table; heads may have another size, and all layers a sliding window."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, MLP, NORMS
from shardyard.builder.families.llama import EXTRAS
from shardyard.builder.families.rules import Family

__all__ = ["MISTRAL"]

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    table=(*ENDS, *NORMS, *ATTENTION, *MLP),
    defaults={
        "norm_epsilon": 1e-6,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    extras=EXTRAS,
    fixed={"qkv_bias": False, "dense_bias": False, "mlp_bias": False},
    reads=frozenset({"sliding_window"}),
)
