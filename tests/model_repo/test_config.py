"""Model configurations: messages, their text, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from shardyard.errors import ArtifactError
from shardyard.model_repo.config import ModelSettings, ensemble_config, parse, python_config, render
from shardyard.model_repo.tensors import MODELS

PYTHON_MODELS = [name for name in MODELS if name != "ensemble"]


@pytest.mark.parametrize("name", PYTHON_MODELS)
def test_round_trip(name: str) -> None:
    config = python_config(ModelSettings(name, 16, instances=2, max_queue_size=8, parameters={"a": 'x"\n${y}'}))
    assert parse(render(config)) == config


def test_the_ensemble_round_trips() -> None:
    config = ensemble_config(16)
    assert parse(render(config)) == config
    assert [step.model_name for step in config.ensemble_scheduling.step] == [
        "preprocessing",
        "tensorrt_llm",
        "postprocessing",
    ]
    assert config.max_batch_size == 16


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_no_parameter_can_break_the_text(parameters: dict[str, str]) -> None:
    config = python_config(ModelSettings("preprocessing", 1, parameters=parameters))
    assert {key: value.string_value for key, value in parse(render(config)).parameters.items()} == parameters


@pytest.mark.parametrize(
    ("name", "decoupled"),
    [("tensorrt_llm", True), ("tensorrt_llm_bls", True), ("ensemble_unary", False), ("preprocessing", False)],
)
def test_decoupled(name: str, decoupled: bool) -> None:
    assert python_config(ModelSettings(name, 1)).model_transaction_policy.decoupled is decoupled


def test_scalars_are_reshaped_and_ragged_inputs_allowed() -> None:
    inputs = {tensor.name: tensor for tensor in python_config(ModelSettings("tensorrt_llm", 4)).input}
    assert inputs["temperature"].HasField("reshape") and not inputs["temperature"].reshape.shape
    assert inputs["temperature"].data_type == pb.TYPE_FP32
    assert inputs["input_ids"].allow_ragged_batch and not inputs["input_ids"].HasField("reshape")
    assert inputs["seed"].optional and inputs["input_lengths"].optional
    rows = python_config(ModelSettings("postprocessing", 4)).input
    assert {tensor.name for tensor in rows if not tensor.optional} == {"TOKENS_BATCH", "SEQUENCE_LENGTH"}


def test_the_queue() -> None:
    batching = python_config(ModelSettings("tensorrt_llm", 4, max_queue_size=9)).dynamic_batching
    assert batching.default_queue_policy.max_queue_size == 9
    assert list(batching.preferred_batch_size) == [4]
    assert not python_config(ModelSettings("tensorrt_llm_bls", 4, batching=False)).HasField("dynamic_batching")


def test_a_message_that_its_text_does_not_give_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ensemble_config(16)
    monkeypatch.setattr("shardyard.model_repo.config.parse", lambda text: ensemble_config(1))
    with pytest.raises(ArtifactError, match="ensemble does not survive"):
        render(config)
