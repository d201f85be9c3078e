"""Whatever stands in config.json, the answer is a plan or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardyard.builder.layout.cutting import make_cutting_plan
from shardyard.builder.source.checkpoint import open_source
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

Write = Callable[..., Path]
QUICK = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
KEYS = ["architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
KEYS += ["vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "torch_dtype", "eos_token_id"]
KEYS += ["layer_types", "attention_bias", "tie_word_embeddings", "sliding_window", "max_position_embeddings"]


@QUICK
@given(key=st.sampled_from(KEYS), value=JSON)
@example(key="num_hidden_layers", value=10**15)
@example(key="num_attention_heads", value=10**15)
@example(key="vocab_size", value=10**30)
@example(key="rope_scaling", value="linear")
@example(key="rope_scaling", value={"rope_type": [], "factor": {}})
@example(key="rope_theta", value=float("inf"))
@example(key="architectures", value=[["LlamaForCausalLM"]])
def test_no_value_of_any_key_is_a_traceback_or_a_hang(
    write_checkpoint: Write, tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = write_checkpoint(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    try:
        make_cutting_plan(open_source(folder), ParallelSpec(tp=2), "auto")
    except CheckpointError as error:
        assert str(folder) in error.what or "parallel.tp" in error.what
