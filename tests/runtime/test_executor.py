"""The executor with one rank in this process: answers, ends, refusals, cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request, SamplingParams

Generate = Callable[[Executor, list[Request]], Any]


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(6, 515, count).tolist()


@pytest.fixture(scope="module")
def executor(make_engine: Callable[..., Path], executing: Any) -> Iterator[Executor]:
    with executing(make_engine()) as running:
        yield running


@pytest.fixture(scope="module")
def expected(reference: Any, make_checkpoint: Callable[..., Path]) -> Callable[[list[int], int], list[int]]:
    return reference(make_checkpoint("--family", "llama")).greedy


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_greedy_answers_are_the_references(executor: Executor, generate: Generate, expected: Any) -> None:
    prompts = [tokens(n, n) for n in (1, 4, 30, 64, 100, 7, 9, 20, 33, 5)]
    done = generate(executor, [Request(prompt, 8) for prompt in prompts])
    assert done.tokens == [expected(prompt, 8) for prompt in prompts]
    assert {output.finish_reason for output in done.last} == {"length"}
    assert executor.stats().kv_blocks_used == executor.stats().active == 0


def test_sampling_does_not_depend_on_the_batch(executor: Executor, generate: Generate) -> None:
    request = Request(tokens(20), 12, SamplingParams(temperature=1.2, top_k=50, top_p=0.9, seed=3))
    others = [Request(tokens(n, n), 12, SamplingParams(top_p=1.0, seed=3)) for n in (5, 60, 7)]
    alone = generate(executor, [request]).tokens[0]
    assert generate(executor, [*others, request]).tokens[-1] == alone
    other_seed = Request(request.prompt, 12, SamplingParams(temperature=1.2, top_k=50, top_p=0.9, seed=4))
    assert generate(executor, [other_seed]).tokens[0] != alone


def test_repetition_penalty_avoids_what_was_there(executor: Executor, generate: Generate, expected: Any) -> None:
    prompt = tokens(20)
    strong = SamplingParams(repetition_penalty=1000.0, presence_penalty=100.0)
    answer = generate(executor, [Request(prompt, 20, strong)]).tokens[0]
    assert len({*answer, *prompt}) == len(answer) + len(set(prompt))
    assert answer != expected(prompt, 20)


def test_ends(executor: Executor, generate: Generate, expected: Any) -> None:
    prompt = tokens(12, 5)
    answer = expected(prompt, 10)
    at = next(i for i in range(3, 10) if answer.index(answer[i]) == i)
    requests = [
        Request(prompt, 10, end_ids=(1, answer[at])),
        Request(prompt, 10, stop_words=((500, 501), (answer[at - 1], answer[at]))),
        Request(prompt, 10, stop_words=((answer[at],),)),
        Request(prompt, 10, end_ids=(answer[at],), min_tokens=10),
        Request(prompt, 10, stop_words=((answer[at],),), min_tokens=at + 2),
    ]
    done = generate(executor, requests)
    reasons = [output.finish_reason for output in done.last]
    assert reasons[:4] == ["end_id", "stop_word", "stop_word", "length"]
    assert done.tokens[0] == answer[:at]
    assert done.tokens[1] == done.tokens[2] == answer[: at + 1]
    assert answer[at] not in done.tokens[3]
    assert len(done.tokens[3]) == 10
    assert len(done.tokens[4]) >= at + 2


def test_a_stop_word_is_looked_for_in_the_answer_only(executor: Executor, generate: Generate, expected: Any) -> None:
    prompt = tokens(12, 5)
    answer = expected(prompt, 2)
    done = generate(executor, [Request(prompt, 2, stop_words=((prompt[-1], answer[0]),))])
    assert done.tokens[0] == answer


def test_log_probabilities(executor: Executor, generate: Generate, reference: Any, make_checkpoint: Any) -> None:
    prompt = tokens(15)
    done = generate(executor, [Request(prompt, 5, want_log_probs=True)])
    logits = reference(make_checkpoint("--family", "llama")).logits(prompt + done.tokens[0])[14:-1]
    logits = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert done.log_probs[0] == pytest.approx([row[t] for row, t in zip(logits, done.tokens[0], strict=True)], abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (Request([], 4), "prompt is empty"),
        (Request([515], 4), "token 515"),
        (Request([-1], 4), "token -1"),
        (Request([7], 0), "max_tokens=0"),
        (Request([7] * 250, 7), "256"),
        (Request([7], 100000), "256"),
        (Request([7], 4, min_tokens=5), "min_tokens=5"),
        (Request([7], 4, stop_words=((),)), "empty word"),
        (Request([7], 4, stop_words=((900,),)), "token 900"),
        (Request([7], 4, SamplingParams(temperature=-1.0)), "temperature=-1.0"),
        (Request([7], 4, SamplingParams(temperature=float("nan"))), "temperature=nan"),
        (Request([7], 4, SamplingParams(top_p=7.0)), "top_p=7.0"),
        (Request([7], 4, SamplingParams(top_k=-1)), "top_k=-1"),
        (Request([7], 4, SamplingParams(seed=-1)), "seed=-1"),
        (Request([7], 4, SamplingParams(repetition_penalty=0.0)), "repetition_penalty=0.0"),
    ],
)
def test_bad_requests_are_refused_at_once(executor: Executor, request_: Request, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        executor.submit(request_, lambda output: None)
    assert executor.stats().active == 0


def test_the_longest_possible_request(executor: Executor, generate: Generate) -> None:
    assert len(generate(executor, [Request(tokens(200), 56)]).tokens[0]) == 56


def test_cancel_frees_the_blocks(executor: Executor) -> None:
    outputs: list[Output] = []
    started = threading.Event()

    def take(output: Output) -> None:
        outputs.append(output)
        started.set()

    id = executor.submit(Request(tokens(10), 240), take)
    assert started.wait(10)
    assert executor.stats().kv_blocks_used > 0
    steps = executor.stats().steps
    executor.cancel(id)
    wait_for(lambda: outputs[-1].finished)
    assert outputs[-1].finish_reason == "cancelled"
    assert (executor.stats().active, executor.stats().kv_blocks_used) == (0, 0)
    assert executor.stats().steps - steps <= 3
    count = len(outputs)
    executor.cancel(id)
    executor.cancel(10**6)
    time.sleep(0.05)
    assert len(outputs) == count < 200


def test_an_owner_that_fails_disturbs_nobody(executor: Executor, generate: Generate, expected: Any) -> None:
    def fail(output: Output) -> None:
        raise RuntimeError("the owner is gone")

    executor.submit(Request(tokens(10), 200), fail)
    prompt = tokens(9, 9)
    assert generate(executor, [Request(prompt, 6)]).tokens[0] == expected(prompt, 6)
    wait_for(lambda: executor.stats().active == 0)
    assert executor.error is None


def test_an_idle_executor_takes_no_cpu(executor: Executor) -> None:
    def taken() -> float:
        before = time.process_time()
        time.sleep(0.3)
        return time.process_time() - before

    # Other threads of this process (numpy's, after the reference) may take a moment to come to rest.
    wait_for(lambda: taken() < 0.005)


def test_a_full_queue_refuses_and_recovers(make_engine: Callable[..., Path], executing: Any) -> None:
    engine = make_engine(engine={"max_batch_size": 2})
    finished: list[Output] = []

    def take(output: Output) -> None:
        if output.finished:
            finished.append(output)

    with executing(engine, max_queue_size=2) as executor:
        ids = [executor.submit(Request(tokens(5), 200), take) for _ in range(4)]
        with pytest.raises(RequestError, match="queue is full: 2"):
            executor.submit(Request(tokens(5), 200), take)
        assert executor.stats().queued == 2
        executor.cancel(ids[0])
        wait_for(lambda: executor.stats().queued == 1)
        executor.submit(Request(tokens(5), 1), take)
        for id in ids:
            executor.cancel(id)
        wait_for(lambda: len(finished) == 5)
        assert executor.stats().kv_blocks_used == 0


def test_shutdown_ends_what_is_left(make_engine: Callable[..., Path], executing: Any) -> None:
    outputs: list[Output] = []
    with executing(make_engine()) as executor:
        executor.submit(Request(tokens(5), 240), outputs.append)
        wait_for(lambda: bool(outputs))
        executor.shutdown()
        assert outputs[-1].finish_reason == "cancelled"
        with pytest.raises(RequestError, match="stopped"):
            executor.submit(Request(tokens(5), 1), outputs.append)


def test_a_small_cache_serves_all_in_turn(
    make_engine: Callable[..., Path], executing: Any, generate: Generate, expected: Any
) -> None:
    engine = make_engine(engine={"kv_cache_tokens": 96})
    prompts = [tokens(40, seed) for seed in range(5)]
    with executing(engine) as executor:
        done = generate(executor, [Request(prompt, 5) for prompt in prompts])
        assert done.tokens == [expected(prompt, 5) for prompt in prompts]
        with pytest.raises(RequestError, match="96 tokens"):
            executor.submit(Request(tokens(90), 10), lambda output: None)


def test_logits_that_are_not_finite_end_one_request(
    make_engine: Callable[..., Path], executing: Any, tmp_path: Path, generate: Generate, expected: Any
) -> None:
    """A token whose embedding is NaN breaks its own sequence; its neighbours in the batch do not notice."""
    import shutil

    from shardyard.runtime.engine_file import open_engine, write_engine

    shutil.copytree(make_engine(), tmp_path, dirs_exist_ok=True)
    spec, arrays = open_engine(tmp_path / "rank0.engine")
    arrays["transformer.vocab_embedding.weight"][11] = np.nan
    write_engine(tmp_path / "broken", spec, arrays)
    (tmp_path / "broken").replace(tmp_path / "rank0.engine")
    good = [t for t in tokens(30) if t != 11]
    with executing(tmp_path) as executor:
        done = generate(executor, [Request([7, 11], 4), Request(good, 4), Request([11, 7], 4, SamplingParams(top_k=2))])
    assert [output.finish_reason for output in done.last] == ["error", "length", "error"]
    assert "not finite" in done.last[0].error
    assert done.tokens[1] == expected(good, 4)
