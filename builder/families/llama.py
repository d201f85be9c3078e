"""Llama 2 and 3: ``LlamaForCausalLM``."""

from __future__ import annotations

from shardyard.builder.families.rules import Cut, Family, On, Part, Rule

__all__ = ["LLAMA"]

_HF = "model.layers.{}."
_TL = "transformer.layers.{}."
_Q, _K, _V, _O = (f"{_HF}self_attn.{name}_proj." for name in "qkvo")
_GATE, _UP, _DOWN = (f"{_HF}mlp.{name}_proj." for name in ("gate", "up", "down"))
_EMBEDDING = Part("model.embed_tokens.weight", "vocab", "hidden")
_HEAD = Part("lm_head.weight", "vocab", "hidden")
_QKV = tuple(Part(f"{name}weight", rows, "hidden") for name, rows in ((_Q, "q"), (_K, "kv"), (_V, "kv")))
_QKV_BIAS = tuple(Part(f"{name}bias", rows) for name, rows in ((_Q, "q"), (_K, "kv"), (_V, "kv")))

# In TensorRT-LLM `fc` is the branch through the activation, which Hugging Face calls gate_proj, and `gate` is up_proj.
# Both have one shape: the wrong way round loads well and answers garbage.
TABLE = (
    Rule("transformer.vocab_embedding.weight", Cut.EMBEDDING, (_EMBEDDING,), On.FIRST),
    Rule(f"{_TL}input_layernorm.weight", Cut.WHOLE, (Part(f"{_HF}input_layernorm.weight", "hidden"),)),
    Rule(f"{_TL}attention.qkv.weight", Cut.ROWS, _QKV),
    Rule(f"{_TL}attention.qkv.bias", Cut.ROWS, _QKV_BIAS, when="qkv_bias"),
    Rule(f"{_TL}attention.dense.weight", Cut.COLUMNS, (Part(f"{_O}weight", "hidden", "q"),)),
    Rule(f"{_TL}attention.dense.bias", Cut.WHOLE, (Part(f"{_O}bias", "hidden"),), when="dense_bias"),
    Rule(f"{_TL}post_layernorm.weight", Cut.WHOLE, (Part(f"{_HF}post_attention_layernorm.weight", "hidden"),)),
    Rule(f"{_TL}mlp.fc.weight", Cut.ROWS, (Part(f"{_GATE}weight", "inner", "hidden"),)),
    Rule(f"{_TL}mlp.fc.bias", Cut.ROWS, (Part(f"{_GATE}bias", "inner"),), when="mlp_bias"),
    Rule(f"{_TL}mlp.gate.weight", Cut.ROWS, (Part(f"{_UP}weight", "inner", "hidden"),)),
    Rule(f"{_TL}mlp.gate.bias", Cut.ROWS, (Part(f"{_UP}bias", "inner"),), when="mlp_bias"),
    Rule(f"{_TL}mlp.proj.weight", Cut.COLUMNS, (Part(f"{_DOWN}weight", "hidden", "inner"),)),
    Rule(f"{_TL}mlp.proj.bias", Cut.WHOLE, (Part(f"{_DOWN}bias", "hidden"),), when="mlp_bias"),
    Rule("transformer.ln_f.weight", Cut.WHOLE, (Part("model.norm.weight", "hidden"),), On.LAST),
    Rule("lm_head.weight", Cut.VOCAB, (_HEAD,), On.LAST, when="untied"),
    Rule("lm_head.weight", Cut.VOCAB, (_EMBEDDING,), On.LAST, when="tied"),
)

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    table=TABLE,
    defaults={"norm_epsilon": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu"},
    extras={
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
    }
    | dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier"), 1.0)
    | {"output_multiplier_scale": 1.0},
)
