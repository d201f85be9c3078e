"""Perplexity against the reference's logits, and against the definition, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.builder.convert import convert
from shardyard.builder.proof.perplexity import measure_perplexity, split_windows
from shardyard.builder.reference import Reference
from shardyard.builder.source.checkpoint import open_source
from shardyard.cli.parser import build_parser
from shardyard.console import Console
from shardyard.errors import UsageError
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)
TEXT = np.random.default_rng(7).integers(0, 70, 100).tolist()


@given(st.integers(2, 300), st.integers(2, 60), st.data())
def test_every_token_but_the_first_is_counted_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    seen, first = [], 0
    for window in split_windows(range(length), context, stride):
        assert window.tokens == list(range(first, min(first + context, length)))
        assert window.counted < len(window.tokens)
        if first:
            assert len(window.tokens) - window.counted >= context - stride
        seen += window.tokens[-window.counted :]
        first += stride
    assert seen == list(range(1, length))


def _pipeline(folder: Path, **more: Any) -> Pipeline:
    described = {"name": "q", "model": {"checkpoint": str(folder)}, "engine": {"max_seq_len": 64}, **more}
    return Pipeline.model_validate(described)


def _loss(folder: Path, context: int, stride: int) -> float:
    """Work the mean loss out by the definition, from the reference's logits, one token at a time."""
    model, total, first, done = Reference(open_source(folder)), 0.0, 0, 1
    while done < len(TEXT):
        part = TEXT[first : first + context]
        logits = model.logits([part])[0].astype(np.float64)
        for place in range(done - first, len(part)):
            row = logits[place - 1]
            total -= row[part[place]] - np.log(np.exp(row).sum())
        done, first = first + len(part), first + stride
    return total / (len(TEXT) - 1)


@pytest.mark.parametrize("tp", [1, 2])
def test_the_figures_are_the_references(write_sample: Callable[..., Any], tmp_path: Path, tp: int) -> None:
    folder = write_sample(tmp_path / "hf", "gptq").folder
    pipeline = _pipeline(folder, parallel={"tp": tp})
    convert(pipeline, tmp_path / "checkpoint", QUIET)
    found = measure_perplexity(pipeline, tmp_path / "checkpoint", TEXT, QUIET, 40, 24)
    assert [each.tokens for each in found] == [99, 99]
    # GPTQ's numbers are taken over as they are: before and after are the same weights.
    for each in found:
        assert each.loss == pytest.approx(_loss(folder, 40, 24), rel=1e-5)
    assert found[1].value == pytest.approx(np.exp(found[1].loss))


@pytest.mark.parametrize(
    ("tokens", "context", "stride", "said"),
    [([5], 40, 20, "1 token"), (TEXT, 65, 20, "64"), (TEXT, 20, 20, "stride=20"), ([5, 70], 40, 20, "ends at 69")],
)
def test_what_cannot_be_measured_is_refused(
    write_sample: Callable[..., Any], tmp_path: Path, tokens: list[int], context: int, stride: int, said: str
) -> None:
    pipeline = _pipeline(write_sample(tmp_path / "hf", "gptq").folder)
    convert(pipeline, tmp_path / "checkpoint", QUIET)
    with pytest.raises(UsageError) as caught:
        measure_perplexity(pipeline, tmp_path / "checkpoint", tokens, QUIET, context, stride)
    assert said in f"{caught.value.what} {caught.value.why}"


def _run(words: list[str]) -> None:
    args = build_parser().parse_args(words)
    args.console = Console(quiet=True)
    args.verb(args)


def test_the_verb_reads_a_text(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "q.yaml"
    pipeline.write_text(f"name: q\nmodel: {{checkpoint: {make_checkpoint()}}}\nquantization: w4a16\n")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time a river counted its stones, and lost count, and began anew. " * 4)
    common = [str(pipeline), "--work", str(tmp_path), "--quiet"]
    for words in (["convert", *common], ["verify", *common, "--perplexity", str(text), "--context", "32"]):
        _run(words)
    before, after = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert before != after
    assert 1 < before < 10_000
    assert abs(after - before) < 0.2 * before
    with pytest.raises(UsageError, match="cannot be read"):
        _run(["verify", *common, "--perplexity", str(tmp_path / "none.txt")])
