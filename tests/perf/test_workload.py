"""Workloads: the same seed, the same requests; exact lengths; no prompt twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import CheckpointError, PipelineError
from shardyard.perf.prompts import PromptMaker, load_tokenizer
from shardyard.perf.workload import Workload, check_fits, draw_lengths, make_workload, read_workload
from shardyard.perf_spec import LengthSpec
from shardyard.spec import Pipeline

MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def workload(checkpoint: Path, make_pipeline: MakePipeline) -> Callable[..., Workload]:
    return lambda **perf: make_workload(make_pipeline(**perf).perf, PromptMaker(load_tokenizer(checkpoint)))


def test_lengths_are_exact_and_prompts_differ(workload: Callable[..., Workload], checkpoint: Path) -> None:
    drawn = workload(requests=60, input_tokens={"mean": 40, "stddev": 20, "min": 3, "max": 70})
    tokenizer = load_tokenizer(checkpoint)
    prompts = [*drawn.warmup, *drawn.prompts]
    assert len(drawn.prompts) == 60
    assert len(drawn.warmup) == 3
    for prompt in prompts:
        assert len(tokenizer.encode(prompt.text, add_special_tokens=False).ids) == prompt.input_tokens
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    lengths = [prompt.input_tokens for prompt in drawn.prompts]
    assert 3 <= min(lengths) < 30 < 50 < max(lengths) <= 70


def test_the_seed_decides(workload: Callable[..., Workload]) -> None:
    assert workload().fingerprint == workload().fingerprint
    assert workload(seed=1).fingerprint != workload().fingerprint
    # Warm-up does not change what is measured, and more requests begin with the same ones.
    assert workload(warmup_requests=9).prompts == workload().prompts
    assert workload(requests=20).prompts[:12] == workload().prompts


def test_poisson_arrivals(workload: Callable[..., Workload]) -> None:
    drawn = workload(arrival="poisson", rate=50.0, requests=2000, input_tokens={"mean": 30})
    gaps = [later - earlier for earlier, later in zip((0.0, *drawn.arrivals_s), drawn.arrivals_s, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) > 0
    assert mean == pytest.approx(1 / 50, rel=0.1)
    # The gaps of a Poisson process vary as much as they are long.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


def test_seconds_end_arrivals(workload: Callable[..., Workload]) -> None:
    drawn = workload(arrival="poisson", rate=20.0, requests=None, duration_s=3.0)
    assert len(drawn.prompts) == len(drawn.arrivals_s)
    assert 2.0 < max(drawn.arrivals_s) <= 3.0


def test_a_file_keeps_it(workload: Callable[..., Workload], tmp_path: Path) -> None:
    drawn = workload(arrival="poisson", rate=20.0)
    drawn.write(tmp_path / "workload.json")
    assert read_workload(tmp_path / "workload.json") == drawn


@given(st.floats(1, 500), st.floats(0, 300), st.integers(1, 100), st.integers(0, 400) | st.none(), st.integers())
def test_lengths_keep_their_limits(mean: float, stddev: float, low: int, above: int | None, seed: int) -> None:
    high = None if above is None else low + above
    lengths = draw_lengths(LengthSpec(mean=mean, stddev=stddev, min=low, max=high), 20, random.Random(seed))
    assert all(length >= low and (high is None or length <= high) for length in lengths)
    if not stddev:
        assert len(set(lengths)) == 1


def test_more_prompts_than_there_are(workload: Callable[..., Workload]) -> None:
    with pytest.raises(PipelineError, match="no more prompts of 1 tokens"):
        workload(requests=3000, input_tokens={"mean": 1})


def test_a_request_that_the_engine_cannot_take(workload: Callable[..., Workload]) -> None:
    drawn = workload(input_tokens={"mean": 30}, output_tokens={"mean": 40})
    check_fits(drawn, specials=1, max_seq_len=71)
    with pytest.raises(PipelineError, match=r"71 tokens in one request, and engine\.max_seq_len is 70"):
        check_fits(drawn, specials=1, max_seq_len=70)


def test_no_arrival_in_time(workload: Callable[..., Workload]) -> None:
    with pytest.raises(PipelineError, match="has no request"):
        check_fits(workload(arrival="poisson", rate=0.001, requests=None, duration_s=0.01), 0, 100)


@pytest.mark.parametrize(("content", "what"), [(None, "does not exist"), ("{}", "is not a tokenizer")])
def test_a_folder_without_a_tokenizer(tmp_path: Path, content: str | None, what: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=what):
        load_tokenizer(tmp_path)
