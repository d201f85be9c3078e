"""Falcon: ``FalconForCausalLM``, with one key/value head (7B) and with the newer decoder (40B, 180B, Falcon2).

However many key/value heads there are, the fused tensor holds for each its query heads, then its key, then its value.
In TensorRT-LLM ``new_decoder_architecture`` says that attention and MLP have a norm each; of a newer decoder with one
norm for both it is therefore false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardyard.builder.families.blocks import TL, embeddings, layer_norm, linear
from shardyard.builder.families.rules import Cut, Family, Fused, On, Part

__all__ = ["FALCON"]

_HF = "transformer.h.{}."
_QKV = tuple(
    Part(f"{_HF}self_attention.query_key_value", rows, "hidden", Fused(("q", "kv", "kv"), at, groups="kv_heads"))
    for at, rows in enumerate(("q", "kv", "kv"))
)
_OUT = (Part(f"{_HF}self_attention.dense", "hidden", "q"),)
_FC = (Part(f"{_HF}mlp.dense_h_to_4h", "inner", "hidden"),)
_PROJ = (Part(f"{_HF}mlp.dense_4h_to_h", "hidden", "inner"),)


def _derive(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Work out what older and newer files say in several keys."""
    hidden = raw.get("hidden_size")
    heads = raw.get("num_attention_heads", raw.get("n_head"))
    new = raw.get("new_decoder_architecture", False) is True
    own = raw.get("num_kv_heads", raw.get("n_head_kv", heads))
    return {
        "num_hidden_layers": raw.get("num_hidden_layers", raw.get("n_layer")),
        "num_attention_heads": heads,
        "num_key_value_heads": own if new else 1 if raw.get("multi_query", True) is True else heads,
        "intermediate_size": raw.get("ffn_hidden_size", 4 * hidden if isinstance(hidden, int) else None),
        "position": "alibi" if raw.get("alibi", False) is True else "rope",
        "parallel_residual": True if new else raw.get("parallel_attn", True),
        "parallel_norms": raw.get("num_ln_in_parallel_attn", 2) if new else 1,
    }


FALCON = Family(
    name="falcon",
    architecture="FalconForCausalLM",
    table=(
        *embeddings("transformer.word_embeddings.weight", "lm_head.weight"),
        *layer_norm(f"{TL}input_layernorm", f"{_HF}input_layernorm", when="one_norm"),
        *layer_norm(f"{TL}input_layernorm", f"{_HF}ln_attn", when="two_norms"),
        *layer_norm(f"{TL}mlp_layernorm", f"{_HF}ln_mlp", when="two_norms"),
        *layer_norm(f"{TL}post_layernorm", f"{_HF}post_attention_layernorm", when="sequential"),
        *linear(f"{TL}attention.qkv", Cut.ROWS, _QKV, bias="qkv_bias"),
        *linear(f"{TL}attention.dense", Cut.COLUMNS, _OUT, bias="dense_bias"),
        *linear(f"{TL}mlp.fc", Cut.ROWS, _FC, bias="mlp_bias"),
        *linear(f"{TL}mlp.proj", Cut.COLUMNS, _PROJ, bias="mlp_bias"),
        *layer_norm("transformer.ln_f", "transformer.ln_f", On.LAST),
    ),
    defaults={"norm_epsilon": 1e-5, "max_position_embeddings": 2048, "hidden_act": "gelu", "tied": True},
    extras={
        "bias": lambda config: config.qkv_bias,
        "parallel_attention": lambda config: config.parallel_residual,
        "new_decoder_architecture": lambda config: config.parallel_norms == 2,
        "num_ln_in_parallel_attn": lambda config: 2 if config.parallel_norms == 2 else None,
    },
    fixed={"norm": "layer", "gated": False},
    keys={
        "norm_epsilon": "layer_norm_epsilon",
        "hidden_act": "activation",
        "qkv_bias": "bias",
        "dense_bias": "bias",
        "mlp_bias": "bias",
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "ffn_hidden_size",
        "parallel_residual": "parallel_attn",
        "parallel_norms": "num_ln_in_parallel_attn",
    },
    derive=_derive,
    reads=frozenset({"alibi"}),
    refused=(("num_ln_in_parallel_attn", (1, 2), "another number of norms"),),
    prefix="transformer.",
)
