"""Llama 2, 3 and 3.1 and later: ``LlamaForCausalLM``."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, BIASED, ENDS, MLP, NORMS
from shardyard.builder.families.rules import Family

__all__ = ["DEFAULTS", "EXTRAS", "LLAMA"]

DEFAULTS = {"norm_epsilon": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu"}

EXTRAS = {
    "attn_bias": lambda config: config.qkv_bias,
    "mlp_bias": lambda config: config.mlp_bias,
    "disable_weight_only_quant_plugin": False,
    "residual_mlp": False,
    "remove_duplicated_kv_heads": False,
    "fc_after_embed": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "layer_idx_offset": 0,
    "has_partial_lora_mask": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    table=(*ENDS, *NORMS, *ATTENTION, *MLP, *BIASED),
    defaults=DEFAULTS,
    extras=EXTRAS,
)
