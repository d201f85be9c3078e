"""Qwen2 and Qwen2.5: ``Qwen2ForCausalLM``. Llama's table; its attention always has biases on q, k, v and none on o."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, MLP, NORMS, moe_config
from shardyard.builder.families.rules import Family

__all__ = ["DEFAULTS", "EXTRAS", "QWEN2", "WINDOW", "WINDOW_KEYS", "WINDOW_READS"]

DEFAULTS = {"norm_epsilon": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu"}

#: Layers from max_window_layers on see a sliding window, where use_sliding_window says so.
WINDOW = {"sliding_window": 4096, "sliding_first": 28}
WINDOW_KEYS = {"sliding_first": "max_window_layers"}
WINDOW_READS = frozenset({"sliding_window", "use_sliding_window"})

EXTRAS = {
    "attn_bias": lambda config: config.qkv_bias,
    "mlp_bias": lambda config: config.mlp_bias,
    "disable_weight_only_quant_plugin": False,
    "seq_length": 8192,
    "use_logn_attn": False,
    "num_labels": 1,
    "mlp_only_layers": lambda config: sorted(config.moe.but),
    "decoder_sparse_step": lambda config: config.moe.every or 1,
    "moe_intermediate_size": lambda config: config.moe_intermediate_size,
    "moe_shared_expert_intermediate_size": lambda config: config.shared_expert_intermediate_size,
    "moe": moe_config,
}

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    table=(*ENDS, *NORMS, *ATTENTION, *MLP),
    defaults={**DEFAULTS, **WINDOW},
    extras={**EXTRAS, "qwen_type": "qwen2"},
    fixed={"qkv_bias": True, "dense_bias": False, "mlp_bias": False},
    keys=WINDOW_KEYS,
    reads=WINDOW_READS,
)
