"""Every tensor of TensorRT-LLM's models is declared, with its name, type and shape; what is added is optional."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.model_repo.tensors import MODELS, TEXT_INPUTS

#: Read in the published description of TensorRT-LLM's models.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gpu_tensors.json").read_text())
#: What Shardyard adds, for reasons that model_repo/README.md gives.
OWN = {"FOLLOWER", "follower", "text_state", "TEXT_STATE", "min_p", "priority", "deadline_ms", "failure", "text_output"}
OWN |= {"top_p_min", "top_p_decay", "top_p_reset_ids", "early_stopping", "beam_search_diversity_rate", *TEXT_INPUTS}


@pytest.mark.parametrize("model", GOLDEN)
@pytest.mark.parametrize("side", ["input", "output"])
def test_every_tensor_is_there(model: str, side: str) -> None:
    tensors = MODELS[model].inputs if side == "input" else MODELS[model].outputs
    made = {tensor.name: f"{tensor.type} {list(tensor.dims)}" for tensor in tensors}
    # Prompt tables are of the type that an engine was built for; this engine has none.
    wanted = {name: what.replace("BF16", "FP16") for name, what in GOLDEN[model][side].items()}
    assert {name: made.get(name) for name in wanted} == wanted
    assert made.keys() - wanted.keys() <= OWN
    assert len(made) == len(tensors)


def test_what_is_added_is_optional() -> None:
    added = [tensor for model in MODELS.values() for tensor in model.inputs if tensor.name in OWN]
    assert added and all(tensor.optional for tensor in added)


def test_the_unary_front_has_the_ensemble_s_tensors() -> None:
    assert MODELS["ensemble_unary"] == MODELS["ensemble"]
