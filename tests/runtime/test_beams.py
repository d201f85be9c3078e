"""Beam search: what transformers finds is found on every grid, and whatever ends a request ends all of its beams."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import RequestError
from shardyard.runtime.beams.search import Beam, BeamSearch, log_softmax
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Guide, Output, Request, SamplingParams
from shardyard.runtime.scheduler import Policy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "beams.json").read_text(encoding="utf-8"))


def raw_request(search: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": GOLDEN["prompts"][search["prompt"]],
        "max_new_tokens": 12,
        "sampling": search["sampling"],
        "end_ids": search["end_ids"],
        "min_tokens": search["min_tokens"],
        "num_return_sequences": search["sampling"]["beam_width"],
        "want_log_probs": True,
    }


def as_request(raw: dict[str, Any]) -> Request:
    return Request(**{**raw, "sampling": SamplingParams(**raw["sampling"]), "end_ids": tuple(raw["end_ids"])})


def check(found: list[tuple[list[int], float]], search: dict[str, Any]) -> None:
    """Hold tokens and sums of log-probabilities, best first, against transformers'."""
    ends = search["end_ids"]
    assert [tokens for tokens, _ in found] == [
        beam["tokens"][:-1] if beam["tokens"][-1] in ends else beam["tokens"] for beam in search["beams"]
    ]
    penalty = search["sampling"].get("length_penalty", 0.0)
    sums = [beam["score"] * len(beam["tokens"]) ** penalty for beam in search["beams"]]
    assert [score for _, score in found] == pytest.approx(sums, rel=1e-4, abs=1e-3)


class Answers:
    """All outputs of requests that run together."""

    def __init__(self, executor: Executor, requests: list[Request]) -> None:
        self.outputs: list[list[Output]] = [[] for _ in requests]
        self._done = [threading.Event() for _ in requests]
        self.ids = [executor.submit(request, self._taker(i)) for i, request in enumerate(requests)]

    def _taker(self, index: int) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            self.outputs[index].append(output)
            if output.finished:
                self._done[index].set()

        return take

    def wait(self) -> list[list[Output]]:
        for done in self._done:
            assert done.wait(30)
        return self.outputs


@pytest.fixture(scope="module")
def executor(make_engine: Callable[..., Path], executing: Any) -> Iterator[Executor]:
    with executing(make_engine()) as running:
        yield running


def beams(width: int, **more: Any) -> SamplingParams:
    return SamplingParams(beam_width=width, **more)


PROMPT = GOLDEN["prompts"][1]


@pytest.mark.parametrize("family", sorted(GOLDEN["families"]))
def test_transformers_beams(make_engine: Any, executing: Any, family: str) -> None:
    searches = GOLDEN["families"][family]
    # An engine that drafts does so for single answers only.
    engine = make_engine(family, engine={"speculative": "prompt_lookup" if family == "gpt2" else "none"})
    with executing(engine) as executor:
        answers = Answers(executor, [as_request(raw_request(search)) for search in searches]).wait()
        assert executor.stats().kv_blocks_used == executor.stats().active == 0
    for outputs, search in zip(answers, searches, strict=True):
        check([(output.tokens, output.cum_log_prob or 0.0) for output in outputs], search)
        assert [output.index for output in outputs] == list(range(len(outputs)))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for output in outputs:
            assert output.log_probs is not None
            assert len(output.log_probs) == len(output.tokens)
            assert output.finish_reason == ("length" if len(output.tokens) == 12 else "end_id")
            if output.finish_reason == "length":
                assert sum(output.log_probs) == pytest.approx(output.cum_log_prob)


@pytest.mark.e2e
@pytest.mark.parametrize("grid", [(2, 2), (1, 3)], ids=["tp2pp2", "pp3"])
def test_every_grid_finds_them(run_world: Any, make_engine: Any, tmp_path: Path, grid: tuple[int, int]) -> None:
    searches = GOLDEN["families"]["llama"]
    (tmp_path / "requests.json").write_text(json.dumps([raw_request(search) for search in searches]))
    done = run_world(grid[0] * grid[1], "generate.py", make_engine("llama", *grid), tmp_path / "requests.json", 0)
    for answer, search in zip(done["answers"], searches, strict=True):
        check([(tokens, score) for tokens, score in answer["beams"]], search)


def test_stop_words_end_beams_and_stay_in(executor: Executor) -> None:
    plain = Answers(executor, [Request(PROMPT, 8, beams(3), num_return_sequences=3)]).wait()[0]
    word = tuple(plain[0].tokens[2:4])
    [outputs] = Answers(executor, [Request(PROMPT, 8, beams(3), stop_words=(word,), num_return_sequences=3)]).wait()
    stopped = [output.tokens for output in outputs if output.finish_reason == "stop_word"]
    assert plain[0].tokens[:4] in stopped
    assert all(tuple(tokens[-2:]) == word for tokens in stopped)


def test_the_best_come_alone(executor: Executor) -> None:
    one, all_four = (Request(PROMPT, 8, beams(4), num_return_sequences=n) for n in (1, 4))
    best, four = Answers(executor, [one, all_four]).wait()
    assert [output.tokens for output in best] == [four[0].tokens]
    assert best[0].finished


def test_a_small_cache_and_others_in_the_batch(make_engine: Any, executing: Any, executor: Executor) -> None:
    """Beams wait for room, share what they can, and leave their neighbours' answers as they were."""
    requests = [
        Request(GOLDEN["prompts"][i % 3], 60, beams(width), num_return_sequences=width)
        for i, width in enumerate((2, 4, 1, 3, 1, 4))
    ]
    expected = [Answers(executor, [request]).wait()[0] for request in requests]
    engine = make_engine(engine={"kv_cache_tokens": 14 * 32})
    for policy in Policy:
        with executing(engine, batch_scheduler_policy=policy) as small:
            fits = requests if policy is Policy.GUARANTEED_NO_EVICT else requests[:-1]
            answers = Answers(small, fits).wait()
            assert small.stats().kv_blocks_used == 0
        wanted = [expected[requests.index(request)] for request in fits]
        assert [texts(outputs) for outputs in answers] == [texts(outputs) for outputs in wanted]


def texts(outputs: list[Output]) -> list[list[int]]:
    """The answers by their index."""
    answers: dict[int, list[int]] = {}
    for output in outputs:
        answers.setdefault(output.index, []).extend(output.tokens)
    return [answers[index] for index in sorted(answers)]


def test_cancellation_ends_all_beams(executor: Executor) -> None:
    answers = Answers(executor, [Request(PROMPT, 200, beams(4), num_return_sequences=4)])
    deadline = time.monotonic() + 10
    while executor.stats().active < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    executor.cancel(answers.ids[0])
    [[output]] = answers.wait()
    assert (output.finish_reason, output.finished, output.tokens) == ("cancelled", True, [])
    assert (executor.stats().active, executor.stats().kv_blocks_used) == (0, 0)


def test_an_error_ends_all_beams(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(search: BeamSearch, rows: Any, end_with: Any) -> bool:
        calls.append(len(rows))
        if len(calls) == 3:
            raise ValueError("the logits are not finite")
        return advance(search, rows, end_with)

    calls: list[int] = []
    advance = BeamSearch.advance
    monkeypatch.setattr(BeamSearch, "advance", fail)
    [[output]] = Answers(executor, [Request(PROMPT, 20, beams(3))]).wait()
    assert calls == [1, 3, 3]
    assert (output.finish_reason, output.finished) == ("error", True)
    assert "not finite" in (output.error or "")
    assert (executor.stats().active, executor.stats().kv_blocks_used) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (Request(PROMPT, 4, beams(9)), "beam_width=9 .*1 to 8 .engine.max_beam_width"),
        (Request(PROMPT, 4, beams(0)), "beam_width=0"),
        (Request(PROMPT, 4, beams(2), num_return_sequences=3), "num_return_sequences=3 .*1 to beam_width=2"),
        (Request(PROMPT, 4, beams(2, length_penalty=33.0)), "length_penalty=33"),
        (Request(PROMPT, 4, beams(2, length_penalty=float("nan"))), "length_penalty=nan"),
        (Request(PROMPT, 4, beams(2, repetition_penalty=1.1)), "repetition_penalty is not possible with beam_width=2"),
        (Request(PROMPT, 4, beams(2), guide=Guide("json")), "guide is not possible with beam_width=2"),
    ],
)
def test_refused(executor: Executor, request_: Request, problem: str) -> None:
    with pytest.raises(RequestError, match=f"(?s){problem}"):
        executor.submit(request_, lambda output: None)


def test_what_can_never_fit_is_refused(make_engine: Any, executing: Any) -> None:
    engine = make_engine(engine={"kv_cache_tokens": 160, "max_beam_width": 4})
    with executing(engine) as executor:
        with pytest.raises(RequestError, match=r"4 answers of up to 104 tokens.*(?s:.*)13 blocks.*has 5"):
            executor.submit(Request(PROMPT, 72, beams(4)), lambda output: None)
        with pytest.raises(RequestError, match=r"1 to 4 \(engine.max_beam_width\)"):
            executor.submit(Request(PROMPT, 4, beams(5)), lambda output: None)
        assert executor.stats().kv_blocks_used == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.0, 1.0, -1.0]), st.booleans())
def test_a_wide_search_finds_the_best_of_all(seed: int, steps: int, penalty: float, early: bool) -> None:
    """With room for every beam of a vocabulary of three tokens the search is exhaustive."""
    tables = np.random.default_rng(seed).normal(size=(steps, 3, 3)).astype(np.float32)
    search = BeamSearch(beams(3**steps, length_penalty=penalty, early_stopping=early), 1)
    for step in range(steps):
        rows = [log_softmax(tables[step][beam.tokens[-1] if beam.tokens else 0], ()) for beam in search.beams]
        going = search.advance(rows, lambda place, token, last=step == steps - 1: "length" if last else None)
    assert not going
    logs = [[log_softmax(row, ()) for row in table] for table in tables]

    def score(answer: tuple[int, ...]) -> float:
        return float(sum(logs[i][answer[i - 1] if i else 0][token] for i, token in enumerate(answer)))

    scores = [beam.score for beam in search.ended]
    assert scores == pytest.approx([score(beam.tokens) for beam in search.ended], abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert len({beam.tokens for beam in search.ended}) == 3**steps


def test_diversity_lifts_lower_beams() -> None:
    def parents(rate: float) -> list[int]:
        search = BeamSearch(beams(2, beam_diversity=rate), 0)
        search.beams = [Beam((0,), (-1.0,), -1.0), Beam((1,), (-2.0,), -2.0)]
        row = log_softmax(np.zeros(4, np.float32), ())
        search.advance([row, row], lambda place, token: None)
        assert {beam.score for beam in search.beams} <= {-1.0 + float(row[0]), -2.0 + float(row[0])}
        return [beam.parent for beam in search.beams]

    assert parents(0.0) == [0, 0]
    assert parents(2.0) == [1, 1]
