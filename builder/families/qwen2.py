"""Qwen2 and Qwen2.5: ``Qwen2ForCausalLM``. Llama's table; its attention always has biases on q, k, v and none on o."""

from __future__ import annotations

from shardyard.builder.families.llama import TABLE
from shardyard.builder.families.rules import Family

__all__ = ["QWEN2"]

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    table=TABLE,
    defaults={"norm_epsilon": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu"},
    extras={
        "attn_bias": True,
        "mlp_bias": lambda config: config.mlp_bias,
        "disable_weight_only_quant_plugin": False,
        "qwen_type": "qwen2",
        "seq_length": 8192,
        "use_logn_attn": False,
        "num_labels": 1,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    },
    fixed={"qkv_bias": True, "dense_bias": False},
)
