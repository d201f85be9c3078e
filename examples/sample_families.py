"""What examples/make_checkpoint.py makes of each family: the content of config.json, and the tensors that go with it.

Names, shapes and keys are those of the checkpoints on the Hugging Face hub, which transformers reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sample_tensors as tensors

__all__ = ["FAMILIES", "SHAPES", "Sample"]

#: Shapes by name. Sizes are odd on purpose: a vocabulary that no tp divides, layers that pp=2 does not divide,
#: fewer key/value heads than tp=4 has ranks.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 515,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}
#: The shape "tiny" of the families that came later is smaller still.
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Sample:
    """One family.

    ``tensors`` are lines of sample_tensors.py. ``keys`` are the family's own names of config.json's sizes; None: it has
    no such key. ``tiny`` are the sizes of the shape "tiny" that differ. ``zero_centred``: norms scale by 1 + weight.
    ``transposed``: matrices are stored [in, out].
    """

    config: Mapping[str, Any]
    tensors: str
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    keys: Mapping[str, str | None] = field(default_factory=dict)
    tiny: Mapping[str, int] = field(default_factory=lambda: _SMALL)
    zero_centred: bool = False
    transposed: bool = False


_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 96,
    "tie_word_embeddings": False,
}
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
_QWEN2_MOE = {
    **_QWEN2,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 128,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "tie_word_embeddings": False,
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
}
_QWEN3_MOE = {
    **_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
_PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": 2047,
    "original_max_position_embeddings": 2048,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
}
# Caps as low as the scores and logits of random weights, or they would change nothing.
_GEMMA2 = {
    **_GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 0.5,
    "query_pre_attn_scalar": 24,
    "sliding_window": 96,
}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}
_GPT_NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
_FALCON = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "bias": False,
    "multi_query": True,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "pad_token_id": 1,
    "prefix": "</s>",
    "tie_word_embeddings": True,
}
_NO_KV = {"num_key_value_heads": None, "head_dim": None}
_GPT2_KEYS = _NO_KV | {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_FALCON_KEYS = {"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads", "head_dim": None}
_WIDE = {**_SMALL, "head_dim": 32}
_MOE = tensors.FIRST + tensors.ATTENTION + tensors.MLP + tensors.EXPERTS

#: The families by the names that --family takes; falcon_new is Falcon's newer decoder, of the 40B and 180B models.
FAMILIES: dict[str, Sample] = {
    "llama": Sample(_LLAMA, tensors.DENSE, tiny={}),
    "qwen2": Sample(_QWEN2, tensors.DENSE, tiny={}),
    "mistral": Sample(_MISTRAL, tensors.DENSE, tiny=_WIDE),
    "mixtral": Sample(
        _MIXTRAL,
        tensors.FIRST + tensors.ATTENTION + tensors.MIXTRAL + tensors.NORMS + tensors.LAST,
        keys={"head_dim": None},
    ),
    "qwen2_moe": Sample(_QWEN2_MOE, _MOE + tensors.SHARED + tensors.NORMS + tensors.LAST, keys={"head_dim": None}),
    "qwen3": Sample(_QWEN3, tensors.DENSE + tensors.QK_NORM, tiny=_WIDE),
    "qwen3_moe": Sample(_QWEN3_MOE, _MOE + tensors.QK_NORM + tensors.NORMS + tensors.LAST, tiny=_WIDE),
    "phi3": Sample(_PHI3, tensors.FIRST + tensors.PHI3 + tensors.NORMS + tensors.LAST, keys={"head_dim": None}),
    "gemma": Sample(_GEMMA, tensors.DENSE, tiny=_WIDE | {"num_key_value_heads": 1}, zero_centred=True),
    "gemma2": Sample(
        _GEMMA2, tensors.DENSE + tensors.SANDWICH, tiny=_WIDE | {"num_hidden_layers": 4}, zero_centred=True
    ),
    "gpt2": Sample(_GPT2, tensors.GPT2, "transformer.wte.weight", keys=_GPT2_KEYS, transposed=True),
    "gpt_neox": Sample(_GPT_NEOX, tensors.GPT_NEOX, "gpt_neox.embed_in.weight", "embed_out.weight", keys=_NO_KV),
    "falcon": Sample(
        _FALCON, tensors.FALCON, "transformer.word_embeddings.weight", keys=_FALCON_KEYS | {"num_key_value_heads": None}
    ),
    "falcon_new": Sample(
        _FALCON | {"new_decoder_architecture": True},
        tensors.FALCON,
        "transformer.word_embeddings.weight",
        keys=_FALCON_KEYS,
        tiny=_SMALL | {"hidden_size": 128, "num_attention_heads": 8},
    ),
    "opt": Sample(
        _OPT, tensors.OPT, "model.decoder.embed_tokens.weight", keys=_NO_KV | {"intermediate_size": "ffn_dim"}
    ),
}
