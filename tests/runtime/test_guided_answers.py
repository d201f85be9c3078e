"""Guided answers of a whole engine, beside others in the batch."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from shardyard.errors import RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.guides import grammars
from shardyard.runtime.pace import Pace
from shardyard.runtime.request import Guide, Output, Request, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
ENDS = (1, 2)


def tokens(count: int) -> list[int]:
    return np.random.default_rng(count).integers(6, 515, count).tolist()


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("--family", "llama")


@pytest.fixture(scope="module")
def executor(make_engine: Callable[..., Path], folder: Path, executing: Any) -> Iterator[Executor]:
    with executing(make_engine(), tokenizer=folder) as running:
        yield running


@pytest.fixture(scope="module")
def decode(folder: Path) -> Callable[[list[int]], str]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def guided(kind: Any, text: str, most: int = 200, **more: Any) -> Request:
    return Request(tokens(7), most, guide=Guide(kind, text), end_ids=ENDS, **more)


def test_guided_and_free_answers_share_a_batch(
    executor: Executor, generate: Any, decode: Any, reference: Any, folder: Path
) -> None:
    prompt = tokens(12)
    requests = [
        guided("json_schema", json.dumps(SCHEMA)),
        guided("json_schema", json.dumps(SCHEMA), sampling=SamplingParams(temperature=3.0, top_p=1.0, seed=5)),
        guided("regex", r"(cat|dog)s? \d{2,4}", sampling=SamplingParams(top_k=5, seed=1), want_log_probs=True),
        guided("ebnf_grammar", 'root ::= "[" ("a" | root)? "]"\n', 9),
        Request(prompt, 8),
    ]
    done = generate(executor, requests)
    texts = [decode(answer) for answer in done.tokens]
    for text in texts[:2]:
        value = json.loads(text)
        assert set(value) == {"name", "old"}
        assert len(value["name"]) <= 5
    assert re.fullmatch(r"(cat|dog)s? \d{2,4}", texts[2])
    assert len(done.log_probs[2]) == len(done.tokens[2])
    assert re.match(r"\[+a?\]*$", texts[3])
    assert done.tokens[4] == reference(folder).greedy(prompt, 8)
    reasons = [output.finish_reason for output in done.last]
    assert set(reasons[:3]) <= {"end_id", "stop_word"}
    assert reasons[4] == "length"


def test_a_guide_ends_where_nothing_can_be_added_whatever_min_tokens_says(
    executor: Executor, generate: Any, decode: Any
) -> None:
    without = Request(tokens(7), 50, guide=Guide("regex", "ab"), min_tokens=40)
    done = generate(executor, [without, guided("regex", "ab+", 6, min_tokens=6)])
    assert decode(done.tokens[0]) == "ab"
    assert done.last[0].finish_reason == "stop_word"
    assert re.fullmatch("ab{5,}", decode(done.tokens[1]))
    assert len(done.tokens[1]) == 6


def test_a_bad_grammar_is_refused_before_it_takes_a_block(executor: Executor, generate: Any) -> None:
    used = executor.stats().kv_blocks_used
    done = generate(executor, [guided("regex", "(")])
    assert done.last[0].finish_reason == "error"
    assert "cannot be used as regex" in done.last[0].error
    assert executor.stats().kv_blocks_used == used == 0
    with pytest.raises(RequestError, match="'yaml' is unknown"):
        executor.submit(guided("yaml", "a"), lambda output: None)


def test_a_slow_grammar_does_not_hold_up_the_batch(
    executor: Executor, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, last = threading.Event(), []
    made = grammars._GRAMMARS["regex"]

    def compile(text: str) -> str:
        assert slow.wait(20)
        return made(text)

    monkeypatch.setitem(grammars._GRAMMARS, "regex", compile)
    cancelled: list[Output] = []
    executor.submit(guided("regex", "slow"), last.append)
    id = executor.submit(guided("regex", "slower"), cancelled.append)
    assert generate(executor, [Request(tokens(5), 5)]).last[0].finish_reason == "length"
    assert executor.stats().queued == 2
    executor.cancel(id)
    assert generate(executor, [Request(tokens(6), 5)]).last[0].finish_reason == "length"
    assert [output.finish_reason for output in cancelled] == ["cancelled"]
    assert last == []
    slow.set()
    generate(executor, [guided("regex", "slow")])
    assert last[-1].finished


def test_drafts_leave_guided_answers_as_they_are(
    make_engine: Callable[..., Path],
    folder: Path,
    executing: Any,
    generate: Any,
    decode: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 0.2)
    requests = [
        guided("regex", "(abc, ){4,30}!"),
        guided("regex", "(x|yz){40}", sampling=SamplingParams(top_k=3, temperature=0.5, seed=2)),
        guided("json_schema", json.dumps({"type": "array", "items": SCHEMA, "minItems": 4, "maxItems": 4})),
    ]
    answers = []
    for kind in ("none", "prompt_lookup"):
        with executing(make_engine(engine={"speculative": kind}), tokenizer=folder) as executor:
            done = generate(executor, requests)
            assert (executor.stats().accepted_tokens > 0) == (kind == "prompt_lookup")
        answers.append(done.tokens)
    assert answers[0] == answers[1]
    assert re.fullmatch("(x|yz){40}", decode(answers[1][1]))


def test_without_a_tokenizer_a_guide_is_refused(make_engine: Callable[..., Path], executing: Any) -> None:
    with executing(make_engine()) as executor, pytest.raises(RequestError, match="guided answers") as caught:
        executor.submit(guided("json", ""), lambda output: None)
    assert "without a tokenizer" in caught.value.why
