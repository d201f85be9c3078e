"""What the reference reads from config.json: the same as the builder, all of it used, the rest refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.config.hf_config import parse_config
from shardyard.builder.reference import Reference
from shardyard.builder.reference.activations import ACTIVATIONS
from shardyard.builder.reference.facts import read_facts
from shardyard.builder.source.checkpoint import open_source
from shardyard.errors import CheckpointError

PART = "partial_rotary_factor"
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, PART: 0.25}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
#: A key of a golden's config.json and another value, with which the same weights must give other logits.
CHANGES: list[tuple[str, str, Any]] = [
    ("llama", "rms_norm_eps", 0.01),
    ("llama", "rope_theta", 400000.0),
    ("llama", "tie_word_embeddings", True),
    ("llama", "rope_scaling", None),
    ("llama-linear", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("llama-dynamic", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
    ("llama-dynamic", "max_position_embeddings", 300),
    ("llama-yarn", "rope_scaling", {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
    ("llama-yarn", "rope_scaling", {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}),
    ("mistral", "sliding_window", None),
    ("mistral", "sliding_window", 95),
    ("mixtral", "num_experts_per_tok", 1),
    ("qwen2_moe", "norm_topk_prob", True),
    ("qwen3_moe", "norm_topk_prob", False),
    ("phi3-partial", "partial_rotary_factor", 0.5),
    ("gemma2", "sliding_window", 95),
    ("gemma2", "query_pre_attn_scalar", 32),
    ("gemma2", "attn_logit_softcapping", 2.0),
    ("gemma2", "final_logit_softcapping", 1.0),
    ("gpt_neox", "rotary_pct", 0.5),
    ("gpt_neox", "rotary_emb_base", 20000),
    ("gpt_neox", "hidden_act", "gelu_new"),
    ("falcon-alibi", "alibi", False),
    ("opt", "activation_function", "gelu"),
]
#: Other ways to say the same, as transformers 5 and the hub's files do; a key of None is left out.
SAME: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": None, "rope_theta": None, "rope_parameters": LLAMA3}),
    ("llama", {"torch_dtype": None, "dtype": "float32", "rms_norm_eps": 1e-5, "mlp_bias": None, "head_dim": None}),
    ("qwen2", {"sliding_window": 32, "max_window_layers": 1, "layer_types": ["full_attention"] * 5}),
    ("qwen2_moe", {"sliding_window": 0, "layer_types": ["full_attention"] * 3}),
    ("qwen3_moe", {"num_experts": None, "num_local_experts": 8}),
    ("gemma", {"hidden_act": "gelu"}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
    ("gemma2", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("gpt_neox", {"rotary_pct": None, "rotary_emb_base": None, "rope_parameters": PARTIAL}),
    ("phi3-partial", {"partial_rotary_factor": None, "rope_theta": None, "rope_parameters": PARTIAL | {PART: 0.75}}),
    ("falcon", {"multi_query": None, "parallel_attn": None, "alibi": None, "bias": None}),
    ("opt", {"do_layer_norm_before": None, "word_embed_proj_dim": 64, "activation_function": None}),
]
#: What the reference refuses, whether or not the builder would have refused it before.
REFUSED: list[tuple[str, str, Any]] = [
    ("llama", "architectures", ["BloomForCausalLM"]),
    ("llama", "hidden_act", "mish"),
    ("llama", "rope_scaling", {"rope_type": "proportional", "factor": 4.0}),
    ("llama", "rope_scaling", {"type": "default", "mrope_section": [2, 3, 3]}),
    ("qwen2_moe", "use_sliding_window", True),
    ("gemma2", "layer_types", ["full_attention", "sliding_attention"] * 2),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "scale_attn_weights", False),
    ("opt", "do_layer_norm_before", False),
    ("opt", "word_embed_proj_dim", 32),
]


@pytest.mark.parametrize(("name", "key", "value"), CHANGES, ids=lambda part: str(part)[:40])
def test_every_key_changes_the_logits(
    load_golden: Callable[[str], Any], tmp_path: Path, name: str, key: str, value: Any
) -> None:
    golden = load_golden(name)
    folder = Path(shutil.copytree(golden.folder, tmp_path / "changed"))
    raw = json.loads((folder / "config.json").read_text())
    assert raw.get(key, "absent") != value
    (folder / "config.json").write_text(json.dumps(raw | {key: value}))
    made = Reference(open_source(folder)).logits([golden.described["long"]], last_only=True)[0][-1]
    wanted = golden.logits[-1][-1]
    assert np.abs(made - wanted).max() > 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "key", "value"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_the_reference_cannot_compute_is_refused(
    load_golden: Callable[[str], Any], name: str, key: str, value: Any
) -> None:
    path = load_golden(name).folder / "config.json"
    raw = json.loads(path.read_text()) | {key: value}
    with pytest.raises(CheckpointError, match="the reference cannot compute"):
        read_facts(raw, path)


@pytest.mark.parametrize(("name", "changes"), SAME, ids=lambda part: str(part)[:40])
def test_other_ways_to_say_the_same(load_golden: Callable[[str], Any], name: str, changes: dict[str, Any]) -> None:
    path = load_golden(name).folder / "config.json"
    raw = json.loads(path.read_text())
    other = {key: value for key, value in (raw | changes).items() if key not in changes or value is not None}
    assert other != raw
    assert comparable(read_facts(other, path)) == comparable(read_facts(raw, path))
    assert comparable(parse_config(other, path)) == comparable(parse_config(raw, path))


def comparable(read: Any) -> dict[str, Any]:
    """Return what was read without the rotation's own mapping, which holds the keys as they were written."""
    found = {field.name: getattr(read, field.name) for field in fields(read)}
    rotation = found.pop("rope", None) or found.pop("rotary", None)
    if rotation:
        found["rotation"] = {field.name: getattr(rotation, field.name) for field in fields(rotation)}
        found["rotation"] |= dict.fromkeys(("numbers", "scaling"))
    return found


def test_the_builder_reads_the_same(golden: Any) -> None:
    config, path = open_source(golden.folder).config, golden.folder / "config.json"
    facts = read_facts(json.loads(path.read_text()), path)
    names, layers = facts.architecture.names, facts.layers
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (layers, facts.hidden, facts.head_dim)
    assert (config.num_attention_heads, config.num_key_value_heads) == (facts.heads, facts.kv_heads)
    assert (config.norm, config.norm_epsilon, config.tied) == (facts.architecture.norm, facts.epsilon, facts.tied)
    assert ACTIVATIONS[config.activation] is ACTIVATIONS[facts.activation]
    assert (config.gated, config.qk_norm) == (names.gate is not None, names.q_norm is not None)
    assert (config.parallel_residual, config.post_norms) == (
        facts.architecture.parallel,
        names.mlp_out_norm is not None,
    )
    assert config.embedding_scale == pytest.approx(facts.hidden**0.5 if facts.architecture.embedding_scaled else 1)
    assert config.attention_scale == pytest.approx(facts.attention_scale)
    assert (config.attn_softcap, config.final_softcap) == (facts.score_cap, facts.logit_cap)
    assert tuple(config.sliding_window if slides else None for slides in config.sliding_layers) == facts.windows
    assert (config.moe_layers, config.position_offset) == (facts.sparse, facts.architecture.position_offset)
    if any(facts.sparse):
        assert (config.experts_per_token, config.norm_topk_prob) == (facts.experts_per_token, facts.normed_experts)
    assert (config.position == "alibi") == (facts.slopes is not None)
    assert (config.rope is None) == (facts.rotary is None)
    if config.rope and facts.rotary:
        wanted = (facts.rotary.theta, facts.rotary.kind, facts.rotary.width)
        assert (config.rope.theta, config.rope.kind, config.rope.rotary_dim) == wanted
