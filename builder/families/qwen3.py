"""Qwen3: ``Qwen3ForCausalLM``. Queries and keys are normalised head by head; no biases."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, MLP, NORMS, QK_NORMS
from shardyard.builder.families.qwen2 import DEFAULTS, EXTRAS, WINDOW, WINDOW_KEYS, WINDOW_READS
from shardyard.builder.families.rules import Family

__all__ = ["FIXED", "HEAD", "QWEN3", "REFUSED"]

HEAD = {"head_dim": 128}
FIXED = {"qkv_bias": False, "dense_bias": False, "mlp_bias": False, "qk_norm": True}
REFUSED = (("attention_bias", (False,), "biases in attention, which TensorRT-LLM's Qwen3 has not"),)

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    table=(*ENDS, *NORMS, *ATTENTION, *QK_NORMS, *MLP),
    defaults={**DEFAULTS, **HEAD, **WINDOW},
    extras={**EXTRAS, "qwen_type": "qwen3", "qk_layernorm": True},
    fixed=FIXED,
    keys=WINDOW_KEYS,
    reads=WINDOW_READS,
    refused=REFUSED,
)
