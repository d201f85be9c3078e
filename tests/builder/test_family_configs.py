"""config.json of well-known models, as their authors publish them: what the sharder reads from each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shardyard.builder.config.hf_config import parse_config
from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.layout.placing import place_rules, source_shape
from shardyard.builder.layout.ranks import check_degrees
from shardyard.builder.layout.unified_config import unified_config
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

PATH = Path("model/config.json")
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
NEMO = {
    "architectures": ["MistralForCausalLM"],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 131072,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32000,
}
QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "decoder_sparse_step": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "mlp_only_layers": [3],
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "vocab_size": 32064,
}
LONGROPE: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1 + at / 48 for at in range(48)],
    "long_factor": [1 + at for at in range(48)],
}
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA2 = {
    **GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 144,
    "sliding_window": 4096,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 16,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
FALCON_7B = {
    "alibi": False,
    "architectures": ["FalconForCausalLM"],
    "bias": False,
    "hidden_size": 4544,
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "vocab_size": 65024,
}
FALCON_40B = {
    **FALCON_7B,
    "hidden_size": 8192,
    "new_decoder_architecture": True,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
}
OPT = {
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "do_layer_norm_before": True,
    "ffn_dim": 3072,
    "hidden_size": 768,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}
READ: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLAMA31, {"num_key_value_heads": 8, "head_dim": 128, "end_ids": (128001, 128008, 128009), "gated": True}),
    (NEMO, {"head_dim": 128, "hidden_size": 5120, "sliding_window": None}),
    (MIXTRAL, {"num_experts": 8, "moe_intermediate_size": 14336, "norm_topk_prob": True, "moe_layers": (True,) * 32}),
    (
        QWEN2_MOE,
        {
            "moe_layers": (False, True, False, False, False, True),
            "shared_expert_intermediate_size": 5632,
            "qkv_bias": True,
            "norm_topk_prob": False,
            "sliding_window": None,
        },
    ),
    (PHI3, {"sliding_window": 2047, "head_dim": 96, "sliding_layers": (True,) * 32}),
    (GEMMA, {"norm": "rms_plus_one", "hidden_act": "gelu_tanh", "tied": True, "embedding_scale": 2048**0.5}),
    (
        GEMMA2,
        {
            "attention_scale": 1 / 12,
            "attn_softcap": 50.0,
            "final_softcap": 30.0,
            "post_norms": True,
            "sliding_layers": (True, False, True, False),
        },
    ),
    (GPT2, {"intermediate_size": 3072, "position": "learned", "rope": None, "hidden_act": "gelu_tanh", "tied": True}),
    (PYTHIA, {"parallel_residual": True, "parallel_norms": 2, "hidden_act": "gelu", "norm": "layer"}),
    (FALCON_7B, {"num_key_value_heads": 1, "parallel_norms": 1, "intermediate_size": 18176, "head_dim": 64}),
    (FALCON_40B, {"num_key_value_heads": 8, "parallel_norms": 2, "parallel_residual": True}),
    ({**FALCON_40B, "num_ln_in_parallel_attn": 1}, {"parallel_norms": 1, "parallel_residual": True}),
    ({**FALCON_7B, "parallel_attn": False, "alibi": True}, {"parallel_residual": False, "position": "alibi"}),
    (OPT, {"position_offset": 2, "hidden_act": "relu", "gated": False, "norm_epsilon": 1e-5, "tied": True}),
]


@pytest.mark.parametrize(("raw", "fields"), READ, ids=lambda value: str(value.get("architectures", "")))
def test_what_is_read(raw: dict[str, Any], fields: dict[str, Any]) -> None:
    config = parse_config(raw, PATH)
    got = {name: getattr(config, name) for name in fields}
    assert got == pytest.approx(fields) if all(isinstance(v, float) for v in fields.values()) else got == fields


def test_how_much_of_a_head_turns() -> None:
    dims = [
        parse_config(raw, PATH).rope.rotary_dim for raw in (LLAMA31, PYTHIA, {**PHI3, "partial_rotary_factor": 0.75})
    ]
    assert dims == [128, 64, 72]


def test_the_original_length_outside_of_the_scaling_comes_first() -> None:
    config = parse_config({**LLAMA31, "original_max_position_embeddings": 4096}, PATH)
    assert config.rope.scaling == {**LLAMA31["rope_scaling"], "original_max_position_embeddings": 4096}


def test_longrope_has_keys_of_its_own_in_tensorrt_llms_config() -> None:
    raw = {**PHI3, "max_position_embeddings": 131072, "rope_scaling": {**LONGROPE, "type": "su"}}
    config = parse_config(raw, PATH)
    assert (config.rope.kind, config.rope.trained) == ("longrope", 131072)
    written = unified_config(config, ParallelSpec(), "bfloat16", "none")
    assert (written["position_embedding_type"], written["rotary_scaling"]) == ("long_rope", None)
    assert written["original_max_position_embeddings"] == 4096
    assert written["longrope_scaling_short_factors"] == LONGROPE["short_factor"]
    assert written["longrope_scaling_long_factors"] == LONGROPE["long_factor"]


@pytest.mark.parametrize(("used", "layers"), [(True, [False, False, True]), (False, [False] * 3), (None, [False] * 3)])
def test_qwen_has_a_window_in_its_last_layers(used: bool | None, layers: list[bool]) -> None:
    shape = {"num_hidden_layers": 3, "sliding_window": 8, "max_window_layers": 2, "use_sliding_window": used}
    config = parse_config({**LLAMA31, "rope_scaling": None, "architectures": ["Qwen2ForCausalLM"], **shape}, PATH)
    assert list(config.sliding_layers) == layers
    assert config.sliding_window == (8 if used else None)


#: A model, what is changed, and words of the error.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PHI3, {"rope_scaling": LONGROPE | {"long_factor": [1.0]}}, ["rope_scaling.long_factor", "48 numbers"]),
    (PHI3, {"rope_scaling": LONGROPE | {"short_factor": [1.0] * 47 + ["1"]}}, ["rope_scaling.short_factor"]),
    (PHI3, {"rope_scaling": LONGROPE | {"attention_factor": 1.5}}, ["rope_scaling.attention_factor=1.5"]),
    (PHI3, {"attention_bias": True}, ["attention_bias=True"]),
    (NEMO, {"layer_types": ["chunked_attention"] * 40}, ["layer_types", "sliding_attention"]),
    (GEMMA2, {"layer_types": ["full_attention"] * 4}, ["layer_types", "order of layers"]),
    (GEMMA2, {"query_pre_attn_scalar": -1}, ["query_pre_attn_scalar=-1", "number above 0"]),
    (GEMMA2, {"hidden_activation": "mish"}, ["hidden_activation='mish'", "gelu_pytorch_tanh"]),
    (GEMMA, {"hidden_act": "silu"}, ["hidden_act='silu'", "another activation"]),
    (GEMMA, {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0", "soft-capped"]),
    (GPT2, {"scale_attn_weights": False}, ["scale_attn_weights=False"]),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, ["inverse_layer_idx", "layer's number"]),
    (GPT2, {"activation_function": "mish"}, ["activation_function='mish'", "gelu_new"]),
    (GPT2, {"n_head": 7}, ["n_head=7", "n_embd=768"]),
    (GPT2, {"n_embd": "768"}, ["n_embd='768'"]),
    (PYTHIA, {"use_parallel_residual": "no"}, ["use_parallel_residual='no'"]),
    (PYTHIA, {"rotary_pct": 0.02}, ["rotary_pct=0.02", "pairs"]),
    (PYTHIA, {"attention_bias": False}, ["attention_bias=False"]),
    (FALCON_40B, {"num_kv_heads": 7}, ["num_kv_heads=7", "num_attention_heads=128"]),
    (FALCON_40B, {"num_ln_in_parallel_attn": 3}, ["num_ln_in_parallel_attn=3"]),
    (OPT, {"word_embed_proj_dim": 512}, ["word_embed_proj_dim=512", "another width"]),
    (OPT, {"do_layer_norm_before": False}, ["do_layer_norm_before=False", "after the branches"]),
    (OPT, {"enable_bias": False}, ["enable_bias=False"]),
    (QWEN2_MOE, {"num_experts_per_tok": 61}, ["num_experts_per_tok=61", "60 experts"]),
    (QWEN2_MOE, {"mlp_only_layers": "all"}, ["mlp_only_layers='all'"]),
    (QWEN2_MOE, {"use_sliding_window": True}, ["use_sliding_window=True"]),
    (LLAMA31, {"num_local_experts": 8}, ["num_local_experts=8", "experts"]),
    (LLAMA31, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
    (LLAMA31, {"query_pre_attn_scalar": 144}, ["query_pre_attn_scalar=144"]),
]


@pytest.mark.parametrize(("raw", "change", "words"), REFUSED, ids=str)
def test_what_is_refused(raw: dict[str, Any], change: dict[str, Any], words: list[str]) -> None:
    parse_config(raw, PATH)
    with pytest.raises(CheckpointError) as caught:
        parse_config({**raw, **change}, PATH)
    for word in [str(PATH), *words]:
        assert word in str(caught.value)
    assert caught.value.fix


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, max_examples=400)
@given(raw=st.sampled_from([raw for raw, _ in READ]), data=st.data(), value=JSON)
def test_no_value_of_any_key_is_a_traceback(raw: dict[str, Any], data: st.DataObject, value: Any) -> None:
    key = data.draw(st.sampled_from(sorted(raw)))
    for change in (value, 10**400, -1, 1e308):
        try:
            parse_config({**raw, key: change}, PATH)
        except CheckpointError as error:
            assert str(PATH) in error.what


def test_null_is_no_softcap_and_no_window() -> None:
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": None}
    config = parse_config({**GEMMA2, **off}, PATH)
    assert (config.attn_softcap, config.final_softcap, config.sliding_window) == (None, None, None)
    assert not any(config.sliding_layers)


UNIFIED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (MIXTRAL, {"hidden_act": "swiglu", "architecture": "MixtralForCausalLM"}),
    (QWEN2_MOE, {"qwen_type": "qwen2_moe", "mlp_only_layers": [3], "decoder_sparse_step": 2, "attn_bias": True}),
    (PHI3, {"hidden_act": "swiglu", "rotary_pct": 1.0, "sliding_window": 2047}),
    (GEMMA, {"hidden_act": "gelu_pytorch_tanh", "use_parallel_embedding": True, "inter_layernorms": False}),
    (GEMMA2, {"query_pre_attn_scalar": 144, "attn_logit_softcapping": 50.0, "inter_layernorms": True}),
    (GPT2, {"architecture": "GPTForCausalLM", "position_embedding_type": "learned_absolute", "hidden_act": "gelu_new"}),
    (PYTHIA, {"rotary_embedding_dim": 64, "rotary_pct": 0.25, "rotary_emb_base": 10000.0}),
    (FALCON_7B, {"parallel_attention": True, "new_decoder_architecture": False, "num_key_value_heads": 1}),
    (FALCON_40B, {"parallel_attention": True, "new_decoder_architecture": True, "bias": False}),
    ({**FALCON_7B, "alibi": True}, {"position_embedding_type": "alibi_with_scale"}),
    (OPT, {"do_layer_norm_before": True, "hidden_act": "relu"}),
]


@pytest.mark.parametrize(("raw", "keys"), UNIFIED, ids=str)
def test_tensorrt_llms_config(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    written = unified_config(parse_config(raw, PATH), ParallelSpec(tp=2), "bfloat16", "none")
    assert {key: written[key] for key in keys} == keys
    json.dumps(written)


#: A model, degrees, and words of the error.
DEGREES: list[tuple[dict[str, Any], dict[str, int], list[str]]] = [
    (MIXTRAL, {"tp": 16, "moe_ep": 16}, ["parallel.moe_ep=16", "8 experts", "moe_ep = 1, 2, 4, 8"]),
    (MIXTRAL, {"tp": 2, "moe_ep": 2, "cp": 2}, ["parallel.moe_ep=2", "parallel.cp=2", "moe_ep = 1"]),
    ({**MIXTRAL, "intermediate_size": 6}, {"tp": 4}, ["moe_tp = tp / moe_ep = 4", "inner size 6", "moe_ep = 2, 4"]),
    (
        {**QWEN2_MOE, "moe_intermediate_size": 1400},
        {"tp": 16},
        ["moe_ep=1", "moe_tp = tp / moe_ep = 16", "moe_ep = 2, 4"],
    ),
    (FALCON_7B, {"tp": 2}, ["parallel.tp=2", "num_attention_heads=71", "tp = 1, 71"]),
    (LLAMA31, {"tp": 1, "pp": 33}, ["parallel.pp=33", "num_hidden_layers=32"]),
]


@pytest.mark.parametrize(("raw", "degrees", "words"), DEGREES, ids=str)
def test_degrees_that_cannot_cut_the_model(raw: dict[str, Any], degrees: dict[str, int], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_degrees(parse_config(raw, PATH), ParallelSpec(**degrees))
    for word in words:
        assert word in str(caught.value)


BARE: list[tuple[dict[str, Any], str]] = [
    ({**GPT2, "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16, "vocab_size": 11}, "transformer."),
    ({**GEMMA, **dict.fromkeys(("hidden_size", "head_dim", "intermediate_size", "vocab_size"), 16)}, "model."),
]


@pytest.mark.parametrize(("raw", "left_out"), BARE, ids=("gpt2", "gemma"))
def test_names_without_the_familys_prefix(raw: dict[str, Any], left_out: str, tmp_path: Path) -> None:
    """The hub's GPT-2 is saved from the bare model, with the buffers of its masks."""
    config = parse_config(raw, PATH)
    tensors = {
        part.name: np.random.default_rng(1).standard_normal(source_shape(part, config), np.float32)
        for placed in place_rules(config, 1)
        for part in placed.parts
    }
    mask = f"{left_out}h.0.attn.bias" if left_out == "transformer." else f"{left_out}rotary_emb.inv_freq"
    buffers = {mask: np.ones((1, 1, 16, 16), np.float32)}
    for name, prefix in (("full", ""), ("bare", left_out)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(raw))
        save_file(
            {key.removeprefix(prefix): value for key, value in {**tensors, **buffers}.items()},
            tmp_path / name / "model.safetensors",
        )
        (tmp_path / f"{name}-out").mkdir()
        convert_checkpoint(tmp_path / name, tmp_path / f"{name}-out", ParallelSpec(tp=2))
    full, bare = (load_file(tmp_path / f"{name}-out" / "rank1.safetensors") for name in ("full", "bare"))
    assert full.keys() == bare.keys()
    assert all(np.array_equal(full[name], bare[name]) for name in full)
