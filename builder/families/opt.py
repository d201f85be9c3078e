"""OPT: ``OPTForCausalLM``, with norms before the branches. The table of positions begins with two unused rows."""

from __future__ import annotations

from shardyard.builder.families.blocks import TL, embeddings, layer_norm, linear
from shardyard.builder.families.rules import Cut, Family, Fused, On, Part, Rule

__all__ = ["OPT"]

_HF = "model.decoder.layers.{}."
_QKV = tuple(
    Part(f"{_HF}self_attn.{name}_proj", rows, "hidden") for name, rows in zip("qkv", ("q", "kv", "kv"), strict=True)
)
_OUT = (Part(f"{_HF}self_attn.out_proj", "hidden", "q"),)
_FC = (Part(f"{_HF}fc1", "inner", "hidden"),)
_PROJ = (Part(f"{_HF}fc2", "hidden", "inner"),)
_POSITIONS = (
    Part("model.decoder.embed_positions.weight", "positions", "hidden", Fused(("position_offset", "positions"), 1)),
)

OPT = Family(
    name="opt",
    architecture="OPTForCausalLM",
    table=(
        *embeddings("model.decoder.embed_tokens.weight", "lm_head.weight"),
        Rule("transformer.position_embedding.weight", Cut.EMBEDDING, _POSITIONS, On.FIRST),
        *layer_norm(f"{TL}input_layernorm", f"{_HF}self_attn_layer_norm"),
        *layer_norm(f"{TL}post_layernorm", f"{_HF}final_layer_norm"),
        *linear(f"{TL}attention.qkv", Cut.ROWS, _QKV, bias="qkv_bias"),
        *linear(f"{TL}attention.dense", Cut.COLUMNS, _OUT, bias="dense_bias"),
        *linear(f"{TL}mlp.fc", Cut.ROWS, _FC, bias="mlp_bias"),
        *linear(f"{TL}mlp.proj", Cut.COLUMNS, _PROJ, bias="mlp_bias"),
        *layer_norm("transformer.ln_f", "model.decoder.final_layer_norm", On.LAST),
    ),
    defaults={"max_position_embeddings": 2048, "hidden_act": "relu", "tied": True},
    extras={"do_layer_norm_before": True, "use_prompt_tuning": False},
    fixed={
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "gated": False,
        "position": "learned",
        "position_offset": 2,
        "qkv_bias": True,
        "dense_bias": True,
        "mlp_bias": True,
    },
    keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    refused=(
        ("do_layer_norm_before", (True,), "norms after the branches"),
        ("word_embed_proj_dim", lambda raw: (raw.get("hidden_size"),), "embeddings of another width"),
        ("enable_bias", (True,), "layers without biases"),
        ("layer_norm_elementwise_affine", (True,), "norms without weights"),
        ("_remove_final_layer_norm", (False,), "a model without its last norm"),
    ),
)
