"""The check of the ensemble's edges: each way to break one is refused with the edge's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shardyard.errors import ArtifactError
from shardyard.model_repo.ensemble import STEPS, TEXT_STEPS, Step, check_edges
from shardyard.model_repo.tensor import ModelTensors, Tensor
from shardyard.model_repo.tensors import MODELS

Tables = tuple[list[Step], dict[str, ModelTensors]]


@pytest.mark.parametrize("steps", [STEPS, TEXT_STEPS])
def test_the_own_tables_are_whole(steps: tuple[Step, ...]) -> None:
    check_edges(steps)


def _change(tensors: tuple[Tensor, ...], name: str, **changes: object) -> tuple[Tensor, ...]:
    return tuple(replace(tensor, **changes) if tensor.name == name else tensor for tensor in tensors)  # type: ignore[arg-type]


def _input(model: str, name: str, **changes: object) -> Callable[[Tables], None]:
    def apply(tables: Tables) -> None:
        tables[1][model] = replace(tables[1][model], inputs=_change(tables[1][model].inputs, name, **changes))

    return apply


def _output(model: str, name: str, **changes: object) -> Callable[[Tables], None]:
    def apply(tables: Tables) -> None:
        tables[1][model] = replace(tables[1][model], outputs=_change(tables[1][model].outputs, name, **changes))

    return apply


def _step(index: int, kind: str, key: str, value: str | None) -> Callable[[Tables], None]:
    def apply(tables: Tables) -> None:
        table = {**getattr(tables[0][index], kind), key: value}
        kept = {name: pooled for name, pooled in table.items() if pooled is not None}
        tables[0][index] = replace(tables[0][index], **{kind: kept})

    return apply


BROKEN = {
    "type": (
        _input("tensorrt_llm", "input_ids", type="INT64"),
        r"preprocessing\.INPUT_ID → tensorrt_llm\.input_ids is broken",
        "INT32 does not fit INT64",
    ),
    "rank": (
        _output("tensorrt_llm", "output_ids", dims=(-1,)),
        r"tensorrt_llm\.output_ids → postprocessing\.TOKENS_BATCH is broken",
        r"shape \[-1\] does not fit \[-1, -1\]",
    ),
    "shape": (
        _input("postprocessing", "TEXT_STATE", dims=(2, 3)),
        r"tensorrt_llm\.text_state → postprocessing\.TEXT_STATE is broken",
        r"shape \[-1\] does not fit \[2, 3\]",
    ),
    "type of the whole's output": (
        _output("ensemble", "text_output", type="INT32"),
        r"postprocessing\.OUTPUT → ensemble\.text_output is broken",
        "STRING does not fit INT32",
    ),
    "name of an input": (
        _step(1, "inputs", "prompt_ids", "_INPUT_ID"),
        r"_INPUT_ID → tensorrt_llm\.prompt_ids is broken",
        "tensorrt_llm has no input prompt_ids",
    ),
    "name of an output": (
        _step(0, "outputs", "INPUT_IDS", "_INPUT_IDS"),
        r"preprocessing\.INPUT_IDS → _INPUT_IDS is broken",
        "preprocessing has no output INPUT_IDS",
    ),
    "nothing makes it": (
        _step(1, "inputs", "end_id", "_END"),
        r"_END → tensorrt_llm\.end_id is broken",
        "neither the ensemble nor an earlier step has _END",
    ),
    "nothing uses it": (
        _step(1, "inputs", "pad_id", None),
        r"preprocessing\.OUT_PAD_ID is broken",
        "nothing uses it",
    ),
    "made twice": (
        _step(0, "outputs", "INPUT_ID", "text_input"),
        r"preprocessing\.INPUT_ID → text_input is broken",
        "ensemble makes text_input already",
    ),
    "required": (
        _step(2, "inputs", "SEQUENCE_LENGTH", None),
        r"\? → postprocessing\.SEQUENCE_LENGTH is broken",
        "nothing is connected to it",
    ),
    "output of the whole": (
        _step(1, "outputs", "cum_log_probs", None),
        r"output ensemble\.cum_log_probs is broken",
        "no step makes it",
    ),
    "around a decoupled step": (
        _step(2, "inputs", "SEQUENCE_LENGTH", "_REQUEST_OUTPUT_LEN"),
        "into postprocessing is broken",
        "before and after a decoupled step",
    ),
}


@pytest.mark.parametrize(("change", "edge", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_edge_is_named(change: Callable[[Tables], None], edge: str, why: str) -> None:
    tables: Tables = (list(STEPS), dict(MODELS))
    change(tables)
    with pytest.raises(ArtifactError, match=edge) as caught:
        check_edges(*tables)
    assert caught.match(why)
