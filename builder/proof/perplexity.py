"""Perplexity of the rank files on a text, as they are and with the engine's weights: what quantization costs.

exp of the mean negative log-likelihood of a token given those before it. The text is cut into windows of ``context``
tokens that begin ``stride`` tokens apart; each token is counted once, in the first window that reaches it, so that all
but the first ``context`` have at least ``context - stride`` tokens before them. A text's first token is not counted.
Activations and the key/value cache are float32 in both runs: the difference is that of the weights.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard.builder.quantization.rank_file import kept_algo
from shardyard.builder.source.checkpoint import read_json
from shardyard.builder.targets.cpu_build import cpu_target
from shardyard.console import Console
from shardyard.errors import LaunchError, ParityError, UsageError
from shardyard.manifest import read_manifest
from shardyard.mpi import run_world
from shardyard.spec import Pipeline

__all__ = ["CONTEXT", "Perplexity", "Window", "measure_perplexity", "split_windows"]

#: Tokens of a window, and from the beginning of one to that of the next, unless others are asked for.
CONTEXT, STRIDE = 512, 256
MODULE = "shardyard.builder.proof.perplexity_rank"


@dataclass(frozen=True)
class Window:
    """Tokens that run as one prompt; of them the last ``counted`` are counted."""

    tokens: list[int]
    counted: int


@dataclass(frozen=True)
class Perplexity:
    """One run's figure: ``weights`` in words, the ``tokens`` that were counted, and their mean loss in nats."""

    weights: str
    tokens: int
    loss: float

    @property
    def value(self) -> float:
        """The perplexity."""
        return math.exp(min(self.loss, 700.0))


def split_windows(tokens: Sequence[int], context: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a text of at least two tokens; ``stride`` is at least 1 and less than ``context``."""
    counted = 1
    for first in range(0, len(tokens), stride):
        part = list(tokens[first : first + context])
        yield Window(part, first + len(part) - counted)
        counted = first + len(part)
        if counted == len(tokens):
            return


def measure_perplexity(
    pipeline: Pipeline,
    checkpoint: Path,
    tokens: Sequence[int],
    console: Console,
    context: int | None = None,
    stride: int | None = None,
) -> list[Perplexity]:
    """Run a text's tokens through the rank files in ``checkpoint`` over MPI; print and return the figures.

    The first is that of the rank files' own values in float32; the second, where they differ, that of the weights that
    the CPU engine of this pipeline has.

    Raises:
        UsageError: the text is too short or its tokens are not the model's; context and stride contradict each other.
        ArtifactError: ``checkpoint`` is unfinished.
        ParityError: the rank files cannot be run.
    """
    read_manifest(checkpoint, "convert")
    config = read_json(checkpoint / "config.json")
    context = context or min(CONTEXT, config["max_position_embeddings"])
    stride = stride or max(1, min(STRIDE, context // 2))
    _check(tokens, config["vocab_size"], config["max_position_embeddings"], context, stride)
    windows = list(split_windows(tokens, context, stride))
    target = cpu_target(pipeline, config["dtype"], kept_algo(config))
    runs = {"float32": "the rank files' values, float32"}
    if pipeline.engine.target == "cpu":
        runs.setdefault(target.weights, target.weights_from)
    ranks = config["mapping"]["tp_size"] * config["mapping"]["pp_size"]
    found = []
    with console.progress("perplexity", len(runs), "runs") as advance:
        for weights, words in runs.items():
            found.append(Perplexity(words, *_run(checkpoint, ranks, windows, weights)))
            advance(1, words)
    columns = ("weights", "perplexity", "loss per token (nats)", "tokens")
    rows = [(each.weights, f"{each.value:.4f}", f"{each.loss:.5f}", each.tokens) for each in found]
    console.table(f"perplexity, context {context}, stride {stride}", columns, rows)
    if pipeline.engine.target != "cpu" and pipeline.quantization != "none":
        console.say("trtllm-build quantizes for the GPU itself: what that costs is not seen here")
    return found


def _check(tokens: Sequence[int], vocab: int, positions: int, context: int, stride: int) -> None:
    if not 1 <= stride < context <= positions:
        raise UsageError(
            f"context={context} and stride={stride} are not possible",
            why=f"a window has up to {positions} tokens, and the next begins within it",
            fix=f"choose 1 ≤ stride < context ≤ {positions}",
        )
    if len(tokens) < 2:
        raise UsageError(
            f"the text has {len(tokens)} token(s)", why="the first is not predicted", fix="give a longer text"
        )
    if max(tokens) >= vocab:
        raise UsageError(
            f"the tokenizer makes the id {max(tokens)} of the text",
            why=f"the model's vocabulary ends at {vocab - 1}",
            fix="set model.tokenizer to the folder of the tokenizer that the model was trained with",
        )


def _run(checkpoint: Path, ranks: int, windows: Sequence[Window], weights: str) -> tuple[int, float]:
    """Return how many tokens were counted, and their mean loss in nats."""
    bytes_ = sum(path.stat().st_size for path in checkpoint.glob("rank*.safetensors"))
    work = 1 + bytes_ / 1e9 * len(windows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = {"weights": weights, "windows": [asdict(window) for window in windows]}
        (folder / "request.json").write_text(json.dumps(request))
        try:
            run_world(ranks, MODULE, [str(checkpoint.absolute()), str(folder)], timeout=120 + 60 * work)
        except LaunchError as error:
            raise ParityError(
                f"the rank files of {checkpoint} could not be run",
                why=error.why or error.what,
                fix="convert again; if that does not help, shardyard doctor says whether MPI works here",
            ) from None
        losses = json.loads((folder / "losses.json").read_text())
    counted = sum(window.counted for window in windows)
    return counted, math.fsum(losses) / counted
