"""GPT-NeoX and Pythia: ``GPTNeoXForCausalLM``. q, k, v are fused head by head.

Attention and MLP read the same input, or with ``use_parallel_residual`` false one after the other. TensorRT-LLM's
network knows the first form only (builds for GPUs refuse the other) and calls the MLP's norm post_attention_layernorm.
"""

from __future__ import annotations

from shardyard.builder.families.blocks import TL, embeddings, layer_norm, linear
from shardyard.builder.families.rules import Cut, Family, Fused, On, Part

__all__ = ["GPT_NEOX"]

_HF = "gpt_neox.layers.{}."
_QKV = tuple(
    Part(f"{_HF}attention.query_key_value", rows, "hidden", Fused(("q", "kv", "kv"), at, groups="kv_heads"))
    for at, rows in enumerate(("q", "kv", "kv"))
)
_OUT = (Part(f"{_HF}attention.dense", "hidden", "q"),)
_FC = (Part(f"{_HF}mlp.dense_h_to_4h", "inner", "hidden"),)
_PROJ = (Part(f"{_HF}mlp.dense_4h_to_h", "hidden", "inner"),)

GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    table=(
        *embeddings("gpt_neox.embed_in.weight", "embed_out.weight"),
        *layer_norm(f"{TL}input_layernorm", f"{_HF}input_layernorm"),
        *layer_norm(f"{TL}post_attention_layernorm", f"{_HF}post_attention_layernorm"),
        *linear(f"{TL}attention.qkv", Cut.ROWS, _QKV, bias="qkv_bias"),
        *linear(f"{TL}attention.dense", Cut.COLUMNS, _OUT, bias="dense_bias"),
        *linear(f"{TL}mlp.fc", Cut.ROWS, _FC, bias="mlp_bias"),
        *linear(f"{TL}mlp.proj", Cut.COLUMNS, _PROJ, bias="mlp_bias"),
        *layer_norm("transformer.ln_f", "gpt_neox.final_layer_norm", On.LAST),
    ),
    defaults={
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "rotary_share": 0.25,
        "qkv_bias": True,
        "dense_bias": True,
        "parallel_residual": True,
    },
    extras={
        "rotary_pct": lambda config: config.rope.rotary_dim / config.head_dim,
        "rotary_emb_base": lambda config: config.rope.theta,
        "use_parallel_residual": lambda config: config.parallel_residual,
    },
    fixed={"norm": "layer", "gated": False, "mlp_bias": True, "parallel_norms": 2},
    keys={
        "norm_epsilon": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
        "rotary_share": "rotary_pct",
        "parallel_residual": "use_parallel_residual",
    },
    reads=frozenset({"hidden_act", "rotary_pct", "partial_rotary_factor", "rotary_share"}),
    refused=(("attention_bias", (True,), "attention without biases, which TensorRT-LLM's GPT-NeoX has"),),
    prefix="gpt_neox.",
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)
