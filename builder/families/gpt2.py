"""GPT-2: ``GPT2LMHeadModel``. Conv1D weights are stored [in, out], so every matrix is transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardyard.builder.families.blocks import TL, embeddings, layer_norm, linear, moe_config
from shardyard.builder.families.rules import Cut, Family, Fused, On, Part, Rule

__all__ = ["GPT2"]

_HF = "transformer.h.{}."
_QKV = tuple(
    Part(f"{_HF}attn.c_attn", rows, "hidden", Fused(("q", "kv", "kv"), at), transposed=True)
    for at, rows in enumerate(("q", "kv", "kv"))
)
_OUT = (Part(f"{_HF}attn.c_proj", "hidden", "q", transposed=True),)
_FC = (Part(f"{_HF}mlp.c_fc", "inner", "hidden", transposed=True),)
_PROJ = (Part(f"{_HF}mlp.c_proj", "hidden", "inner", transposed=True),)
_POSITIONS = (Part("transformer.wpe.weight", "positions", "hidden"),)


def _derive(raw: Mapping[str, Any]) -> dict[str, Any]:
    hidden = raw.get("n_embd")
    return {"intermediate_size": raw.get("n_inner", 4 * hidden if isinstance(hidden, int) else None)}


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    table=(
        *embeddings("transformer.wte.weight", "lm_head.weight"),
        Rule("transformer.position_embedding.weight", Cut.EMBEDDING, _POSITIONS, On.FIRST),
        *layer_norm(f"{TL}input_layernorm", f"{_HF}ln_1"),
        *layer_norm(f"{TL}post_layernorm", f"{_HF}ln_2"),
        *linear(f"{TL}attention.qkv", Cut.ROWS, _QKV, bias="qkv_bias"),
        *linear(f"{TL}attention.dense", Cut.COLUMNS, _OUT, bias="dense_bias"),
        *linear(f"{TL}mlp.fc", Cut.ROWS, _FC, bias="mlp_bias"),
        *linear(f"{TL}mlp.proj", Cut.COLUMNS, _PROJ, bias="mlp_bias"),
        *layer_norm("transformer.ln_f", "transformer.ln_f", On.LAST),
    ),
    defaults={"norm_epsilon": 1e-5, "max_position_embeddings": 1024, "hidden_act": "gelu_new", "tied": True},
    extras={
        "architecture": "GPTForCausalLM",
        "bias": True,
        "q_scaling": 1.0,
        "embedding_scale": None,
        "apply_query_key_layer_scaling": False,
        "rotary_pct": 1.0,
        "rotary_base": 10000.0,
        "rotary_scaling": None,
        "moe": moe_config,
    },
    fixed={
        "norm": "layer",
        "gated": False,
        "position": "learned",
        "qkv_bias": True,
        "dense_bias": True,
        "mlp_bias": True,
    },
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "norm_epsilon": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    derive=_derive,
    refused=(
        ("scale_attn_weights", (True,), "scores that are not scaled"),
        ("scale_attn_by_inverse_layer_idx", (False,), "scores scaled by the layer's number"),
    ),
    prefix="transformer.",
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)
