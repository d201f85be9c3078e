"""A fault in one sequence ends that sequence alone; what cannot be served is refused before it takes a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import RequestError
from shardyard.runtime import leader as leading
from shardyard.runtime.executor import Executor
from shardyard.runtime.guides import grammars
from shardyard.runtime.guides.guided_answer import GuidedAnswer
from shardyard.runtime.request import Guide, Request, SamplingParams
from shardyard.runtime.sequence import Sequence

TOKENS = np.random.default_rng(30).integers(6, 515, 60).tolist()
NEIGHBOURS = [Request(TOKENS[:40], 30), Request(TOKENS[:10] * 4, 30, SamplingParams(top_p=0.9, seed=3))]
#: The prompt by which a fault knows its request.
MARK = TOKENS[50:57]
GUIDED = Request(MARK, 20, guide=Guide("regex", "[ab]{20}"), end_ids=(1, 2))


@pytest.fixture(scope="module", params=["none", "prompt_lookup"])
def executor(
    request: pytest.FixtureRequest, make_engine: Callable[..., Path], make_checkpoint: Any, executing: Any
) -> Iterator[Executor]:
    engine = make_engine(engine={"speculative": request.param, "lora": {"max_rank": 4, "max_adapters": 2}})
    with executing(engine, tokenizer=make_checkpoint("--family", "llama")) as running:
        yield running


@pytest.fixture(scope="module")
def alone(executor: Executor, generate: Any) -> list[list[int]]:
    return [generate(executor, [request]).tokens[0] for request in NEIGHBOURS]


def fails(where: Callable[..., Any], when: Callable[..., bool], after: int) -> Callable[..., Any]:
    """Call ``where``, but raise at the call of that number among those for which ``when`` is true."""
    calls = []

    def call(*args: Any, **more: Any) -> Any:
        if when(*args):
            calls.append(args)
            if len(calls) > after:
                raise ZeroDivisionError("injected")
        return where(*args, **more)

    return call


def marked(sequence: Any, *rest: Any) -> bool:
    return list(sequence.request.prompt) == MARK


def always(*args: Any) -> bool:
    return True


SAMPLED = Request(MARK, 20, SamplingParams(top_k=3))
SEVERAL = Request(MARK, 20, SamplingParams(top_k=9), num_return_sequences=3)
#: The request, what of it fails, whose calls those are, how many go well.
FAULTS = {
    "the guide's mask": (GUIDED, (GuidedAnswer, "allowed"), always, 3),
    "the guide's parser": (GUIDED, (GuidedAnswer, "follow"), always, 3),
    "the guide's first mask": (GUIDED, (GuidedAnswer, "allowed"), always, 0),
    "the grammar": (GUIDED, (grammars.Grammars, "compile"), always, 0),
    "the choice": (SAMPLED, (leading, "choose_for"), marked, 4),
    "the end": (Request(MARK, 20), (Sequence, "append"), marked, 5),
    "the log-probability": (Request(MARK, 20, want_log_probs=True), (leading, "log_probability"), always, 2),
    "the prompt's logits": (Request(MARK, 20, want_context_logits=True), (Sequence, "keep_context"), marked, 1),
    "one of several": (SEVERAL, (Sequence, "append"), marked, 7),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_neighbours_do_not_notice(
    executor: Executor, generate: Any, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    request, (owner, name), when, after = FAULTS[fault]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails(getattr(owner, name), when, after))
        done = generate(executor, [NEIGHBOURS[0], request, NEIGHBOURS[1]])
    assert (done.last[1].finish_reason, done.last[1].finished) == ("error", True)
    assert "injected" in done.last[1].error
    assert [done.tokens[0], done.tokens[2]] == alone
    assert executor.error is None
    stats = executor.stats()
    assert (stats.active, stats.queued, stats.kv_blocks_used) == (0, 0, 0)
    # The same request is served as soon as nothing fails any more.
    assert generate(executor, [request]).last[0].finish_reason in ("length", "stop_word", "end_id")


def sampled(**fields: Any) -> dict[str, Any]:
    return {"sampling": SamplingParams(**fields)}


#: Fields of a request, the reason's first words, the limit or remedy that is named.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "the prompt is empty", "at least one token"),
    ({"prompt": [7, 515]}, "prompt holds token 515", "0 to 514"),
    ({"prompt": [7] * 250, "max_new_tokens": 7}, "a prompt of 250 tokens and max_tokens=7", "256"),
    ({"max_new_tokens": 0}, "max_tokens=0", "at least one token"),
    ({"min_tokens": 5}, "min_tokens=5", "0 to max_tokens=4"),
    ({"stop_words": ((600,),)}, "stop_words holds token 600", "0 to 514"),
    ({"bad_words": ((),)}, "bad_words holds an empty word", "everywhere"),
    ({"embedding_bias": np.zeros(9, np.float32)}, r"embedding_bias has the shape \[9\]", "515"),
    ({"priority": 2.0}, "priority=2.0", "0 to 1"),
    ({"deadline_s": 0.0}, "deadline_s=0.0", "more than 0"),
    (sampled(temperature=-1.0), "temperature=-1.0", "0 to"),
    (sampled(top_k=-1), "top_k=-1", "0 to"),
    (sampled(top_p=1.5), "top_p=1.5", "0 to 1"),
    (sampled(min_p=-0.1), "min_p=-0.1", "0 to 1"),
    (sampled(repetition_penalty=0.0), "repetition_penalty=0.0", "1e-06"),
    (sampled(frequency_penalty=float("inf")), "frequency_penalty=inf", "-1e"),
    (sampled(beam_width=9), "beam_width=9", "1 to 8"),
    ({"num_return_sequences": 9}, "num_return_sequences=9", "1 to 8"),
    ({**sampled(beam_width=2), "num_return_sequences": 3}, "num_return_sequences=3", "1 to beam_width=2"),
    ({**sampled(beam_width=2), "guide": Guide("json")}, "guide is not possible", "leave out"),
    ({"guide": Guide("yaml")}, "'yaml' is unknown", "json"),  # type: ignore[arg-type]
    ({"guide": Guide("regex", " ")}, "empty", ""),
    ({"lora_id": 5}, "adapter 5 cannot be used", "serve.lora_dir"),
]


@pytest.mark.parametrize(("fields", "what", "limit"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_refused_with_reason_and_limit(executor: Executor, fields: dict[str, Any], what: str, limit: str) -> None:
    before, came = executor.stats(), []
    with pytest.raises(RequestError, match=what) as caught:
        executor.submit(Request(**{"prompt": [7], "max_new_tokens": 4, **fields}), came.append)
    assert limit in str(caught.value)
    after = executor.stats()
    assert (after.kv_blocks_new, after.kv_blocks_used, after.active, after.queued) == (before.kv_blocks_new, 0, 0, 0)
    assert came == []


@pytest.mark.parametrize(
    ("guide", "why"),
    [(Guide("regex", "(a"), "unclosed"), (Guide("json_schema", '{"type": "objct"}'), "objct")],
    ids=["regex", "schema"],
)
def test_a_bad_grammar_takes_no_block(executor: Executor, generate: Any, guide: Guide, why: str) -> None:
    """It is compiled beside the steps: the answer is the refusal."""
    before = executor.stats()
    [output] = generate(executor, [Request([7], 4, guide=guide)]).last
    assert output.finish_reason == "error"
    assert why in output.error
    assert executor.stats().kv_blocks_new == before.kv_blocks_new
