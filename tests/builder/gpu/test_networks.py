"""What TensorRT-LLM's networks take for granted is refused where a model has it otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.targets.gpu_model import model_of_source
from shardyard.builder.targets.gpu_request import make_request
from shardyard.errors import PipelineError

NEOX = {
    "architecture": "GPTNeoXForCausalLM",
    "norm_epsilon": 1e-5,
    "hidden_size": 64,
    "intermediate_size": 256,
    "rotary_scaling": None,
}
FALCON = {"architecture": "FalconForCausalLM", "norm_epsilon": 1e-6, "parallel_attention": True, "rotary_scaling": None}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**NEOX, "norm_epsilon": 1e-6}, "norm_epsilon=1e-06"),
    ({**NEOX, "intermediate_size": 128}, "intermediate_size=128"),
    ({**NEOX, "rotary_scaling": {"type": "linear", "factor": 2.0}}, "rotary_scaling={'type': 'linear'"),
    ({**NEOX, "use_parallel_residual": False}, "use_parallel_residual=False"),
    ({**FALCON, "rotary_scaling": {"type": "linear", "factor": 2.0}}, "rotary_scaling={'type': 'linear'"),
    ({**FALCON, "parallel_attention": False}, "norm_epsilon=1e-06"),
]


def request_of(change: dict[str, Any], converted: Callable[..., Any], gpu_pipeline: Callable[..., Any]) -> None:
    source: Path = converted(1, 1)[0]
    pipeline = gpu_pipeline(source, 1, 1)
    model = model_of_source(pipeline)
    make_request(pipeline, replace(model, config={**model.config, **change}))


@pytest.mark.parametrize(("change", "what"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_the_network_does_not_read(
    change: dict[str, Any], what: str, converted: Callable[..., Any], gpu_pipeline: Callable[..., Any]
) -> None:
    with pytest.raises(PipelineError) as caught:
        request_of(change, converted, gpu_pipeline)
    assert what in caught.value.what
    assert "engine.target" in str(caught.value.fix)


@pytest.mark.parametrize("fine", [NEOX, FALCON], ids=lambda value: str(value["architecture"]))
def test_what_it_has(fine: dict[str, Any], converted: Callable[..., Any], gpu_pipeline: Callable[..., Any]) -> None:
    request_of(fine, converted, gpu_pipeline)
