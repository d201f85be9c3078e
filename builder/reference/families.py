"""The families, by the architecture that config.json names.

Sources: the papers of Llama (arXiv:2302.13971, 2307.09288, 2407.21783), Mistral (2310.06825), Mixtral (2401.04088),
Qwen2 (2407.10671), Qwen3 (2505.09388), Phi-3 (2404.14219), Gemma (2403.08295), Gemma 2 (2408.00118), GPT-2 (Radford et
al. 2019), GPT-NeoX (2204.06745), Falcon (2311.16867) and OPT (2205.01068), with the names and defaults of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardyard.builder.reference.architecture import Architecture, Experts, Names

__all__ = ["FAMILIES", "resolve"]

_LLAMA = Names()
_QK_NORM = replace(_LLAMA, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
_MIXTRAL = Experts(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)
_QWEN_MOE = Experts(
    router="mlp.gate",
    gate="mlp.experts.{}.gate_proj",
    up="mlp.experts.{}.up_proj",
    down="mlp.experts.{}.down_proj",
)
_SHARED = replace(_QWEN_MOE, shared="mlp.shared_expert.{}_proj", shared_gate="mlp.shared_expert_gate")
_PHI3 = replace(_LLAMA, qkv=("self_attn.qkv_proj",), gate_up="mlp.gate_up_proj")
_GEMMA2 = replace(
    _LLAMA,
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)
_GPT2 = Names(
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    layer="transformer.h.{}.",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    mlp_norm="ln_2",
    gate=None,
    up="mlp.c_fc",
    down="mlp.c_proj",
)
_GPT_NEOX = Names(
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    layer="gpt_neox.layers.{}.",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)
_FALCON = Names(
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    layer="transformer.h.{}.",
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)
_OPT = Names(
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    final_norm="model.decoder.final_layer_norm",
    layer="model.decoder.layers.{}.",
    attention_norm="self_attn_layer_norm",
    out="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    gate=None,
    up="fc1",
    down="fc2",
)

_SILU = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
_MISTRAL = _SILU | {"num_key_value_heads": 8, "max_position_embeddings": 131072}
_MIXTRAL_DEFAULTS = _MISTRAL | {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
_QWEN = _SILU | {"max_position_embeddings": 32768}
_QWEN_WINDOW = _QWEN | {"sliding_window": 4096}
_NO_WINDOW = {"use_sliding_window": False}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "norm_epsilon": "layer_norm_epsilon",
}

FAMILIES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(defaults=_SILU),
    "MistralForCausalLM": Architecture(sliding_every=1, defaults=_MISTRAL | {"sliding_window": 4096}),
    "MixtralForCausalLM": Architecture(
        replace(_LLAMA, experts=_MIXTRAL),
        sliding_every=1,
        defaults=_MIXTRAL_DEFAULTS,
    ),
    "Qwen2ForCausalLM": Architecture(
        sliding_every=1, sliding_switch=True, defaults=_QWEN_WINDOW | {"num_key_value_heads": 32}
    ),
    "Qwen2MoeForCausalLM": Architecture(
        replace(_LLAMA, experts=_SHARED),
        defaults=_QWEN | {"num_key_value_heads": 16, "num_experts_per_tok": 4},
        refused=_NO_WINDOW,
    ),
    "Qwen3ForCausalLM": Architecture(
        _QK_NORM,
        sliding_every=1,
        sliding_switch=True,
        defaults=_QWEN_WINDOW | {"num_key_value_heads": 32, "head_dim": 128},
    ),
    "Qwen3MoeForCausalLM": Architecture(
        replace(_QK_NORM, experts=_QWEN_MOE),
        defaults=_QWEN | {"num_key_value_heads": 4, "num_experts_per_tok": 8},
        refused=_NO_WINDOW,
    ),
    "Phi3ForCausalLM": Architecture(
        _PHI3, sliding_every=1, defaults=_SILU | {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    ),
    "GemmaForCausalLM": Architecture(
        norm="rms_plus_one",
        embedding_scaled=True,
        defaults=_GEMMA_DEFAULTS | {"num_key_value_heads": 16},
    ),
    "Gemma2ForCausalLM": Architecture(
        _GEMMA2,
        norm="rms_plus_one",
        embedding_scaled=True,
        sliding_every=2,
        keys={"hidden_act": "hidden_activation"},
        defaults=_GEMMA_DEFAULTS
        | {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 256,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
        },
    ),
    "GPT2LMHeadModel": Architecture(
        _GPT2,
        prefix="transformer.",
        norm="layer",
        transposed=True,
        keys=_GPT2_KEYS,
        defaults={"hidden_act": "gelu_new", "norm_epsilon": 1e-5, "tie_word_embeddings": True},
        refused={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "GPTNeoXForCausalLM": Architecture(
        _GPT_NEOX,
        prefix="gpt_neox.",
        norm="layer",
        fused="grouped",
        parallel=True,
        keys={
            "norm_epsilon": "layer_norm_eps",
            "rope_theta": "rotary_emb_base",
            "partial_rotary_factor": "rotary_pct",
        },
        defaults={"hidden_act": "gelu", "norm_epsilon": 1e-5, "partial_rotary_factor": 0.25},
    ),
    "FalconForCausalLM": Architecture(
        _FALCON,
        prefix="transformer.",
        norm="layer",
        fused="grouped",
        parallel=True,
        keys={"hidden_act": "activation", "norm_epsilon": "layer_norm_epsilon", "num_key_value_heads": "num_kv_heads"},
        defaults={"hidden_act": "gelu", "norm_epsilon": 1e-5, "tie_word_embeddings": True, "multi_query": True},
    ),
    "OPTForCausalLM": Architecture(
        _OPT,
        norm="layer",
        position_offset=2,
        keys={"hidden_act": "activation_function"},
        defaults={"hidden_act": "relu", "norm_epsilon": 1e-5, "tie_word_embeddings": True},
        refused={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
        },
    ),
}


def resolve(name: str, raw: Mapping[str, Any]) -> Architecture:
    """Return the family as this config.json has it: two choose their blocks' layout by keys of their own.

    Raises KeyError for a family that there is none of here.
    """
    family = FAMILIES[name]
    if name == "GPTNeoXForCausalLM":
        return replace(family, parallel=raw.get("use_parallel_residual", True))
    if name != "FalconForCausalLM":
        return family
    newer = bool(raw.get("new_decoder_architecture"))
    parallel = newer or raw.get("parallel_attn", True)
    two = newer and (raw.get("num_ln_in_parallel_attn") or 2) == 2
    attention, mlp = _FALCON_NORMS[two, parallel]
    return replace(family, parallel=parallel, names=replace(family.names, attention_norm=attention, mlp_norm=mlp))


#: Falcon's norms before attention and MLP, by whether there are two and whether the two branches are parallel.
_FALCON_NORMS = {
    (True, True): ("ln_attn", "ln_mlp"),
    (False, True): ("input_layernorm", "input_layernorm"),
    (False, False): ("input_layernorm", "post_attention_layernorm"),
}
