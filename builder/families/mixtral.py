"""Mixtral: ``MixtralForCausalLM``. Experts in every layer: w1 is gate, w3 is up, w2 is down."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, NORMS, experts, moe_config
from shardyard.builder.families.llama import EXTRAS
from shardyard.builder.families.rules import Family

__all__ = ["MIXTRAL"]

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    table=(*ENDS, *NORMS, *ATTENTION, *experts("block_sparse_moe", gate="w1", up="w3", down="w2")),
    defaults={
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "num_key_value_heads": 8,
        "num_experts": 8,
        "experts_per_token": 2,
        "rope_theta": 1e6,
    },
    extras={**EXTRAS, "hidden_act": "swiglu", "moe": moe_config},
    fixed={"qkv_bias": False, "dense_bias": False, "mlp_bias": False, "norm_topk_prob": True},
    keys={"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"},
    reads=frozenset({"sliding_window", "num_local_experts"}),
)
