"""An operation in Python that fails ends the inference, though OpenVINO says nothing; and its peers do not wait."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.runtime import own_attention
from shardyard.runtime.op_failure import noting_failure, raise_noted
from shardyard.runtime.rank import RankModel


def test_the_first_is_raised_once() -> None:
    aborted: list[bool] = []
    for problem in ("one", "two"):
        with pytest.raises(ValueError, match=problem), noting_failure(lambda: aborted.append(True)):
            raise ValueError(problem)
    with pytest.raises(RuntimeError, match="ValueError: one"):
        raise_noted()
    raise_noted()
    assert aborted == [True, True]


def test_attention_that_fails_ends_the_inference(
    tiny_model: Callable[..., RankModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(4, softcap=5.0)
    right = model.logits([1, 2, 3])
    calls = []

    def fail(*arrays: Any) -> Any:
        calls.append(arrays)
        raise ValueError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(own_attention._Attention, "run", fail)
        with pytest.raises(RuntimeError, match="no room"):
            model.logits([1, 2, 3])
    assert calls
    again = model.logits([1, 2, 3])
    assert right is not None and again is not None
    assert (again == right).all()


@pytest.mark.e2e
def test_a_sum_that_fails_ends_the_world(make_engine: Any, world: Any, tmp_path: Path) -> None:
    """Over MPI, without a compiler: rank 1 fails in its fifth sum."""
    (tmp_path / "requests.json").write_text(json.dumps([{"prompt": [5, 6, 7], "max_new_tokens": 20}]))
    engine = make_engine(tp=2)
    process = world(
        2, "failing_sum.py", engine, tmp_path / "requests.json", env={"SHARDYARD_TEST_FAIL_AT": "5", "CXX": "none"}
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the fifth sum" in errors
