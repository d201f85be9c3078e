"""Qwen2 and Qwen2.5: ``Qwen2ForCausalLM``. Llama's table; its attention always has biases on q, k, v and none on o."""

from __future__ import annotations

from shardyard.builder.families.llama import TABLE
from shardyard.builder.families.rules import Family

__all__ = ["QWEN2"]

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    table=TABLE,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu"},
    extras={
        "qwen_type": "qwen2",
        "seq_length": 8192,
        "use_logn_attn": False,
        "num_labels": 1,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    },
    qkv_bias=True,
    dense_bias=False,
)
