"""Numeric parity: the rank files, run in float32 over MPI, against the unsharded reference.

Layer by layer: a process per tensor-parallel rank runs one part of the network at a time, so that a model of any size
can be verified where one layer of it fits. As a whole: every rank runs its own file, as when serving; the world answers
every prompt greedily, and the reference then computes the logits of the same tokens. Equal choices at every position
mean that greedy generation is equal.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from shardyard.builder.dtypes import Array
from shardyard.builder.layout.cutting import make_cutting_plan
from shardyard.builder.plan import rank_elements
from shardyard.builder.proof.asked import reference_of
from shardyard.builder.proof.following import PROGRESS, following
from shardyard.builder.proof.layer_figures import LayerFigures, PromptParity, compare_logits
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.console import Console, human_bytes
from shardyard.errors import LaunchError, ParityError, ToolchainError
from shardyard.mpi import run_world
from shardyard.spec import ParallelSpec

__all__ = [
    "LayerParity",
    "compare_generation",
    "compare_layers",
    "make_prompts",
    "memory_problem",
    "streamed_memory_problem",
]

#: Lengths in tokens of the prompts that are asked, cut to what the model was trained for; the last is the long one.
LENGTHS = (1, 7, 33, 320)
NEW_TOKENS = 8
SEED = 0
WHOLE = "shardyard.builder.proof.verify_rank"
LAYERS = "shardyard.builder.proof.verify_layers"


@dataclass(frozen=True)
class LayerParity:
    """Figures of each part of the network, of each prompt's logits, and the ranks' peak resident memory in bytes."""

    layers: list[LayerFigures]
    prompts: list[PromptParity]
    peak_bytes: list[int]

    @property
    def first_difference(self) -> LayerFigures | None:
        """The first part that misses the bar; the parts after it start from its error."""
        return next((figures for figures in self.layers if not figures.passed), None)


def make_prompts(vocab_size: int, max_positions: int) -> list[list[int]]:
    """Return prompts of seeded random token ids."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    lengths = sorted({max(1, min(length, max_positions - NEW_TOKENS)) for length in LENGTHS})
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def memory_problem(source: SourceCheckpoint, parallel: ParallelSpec) -> str | None:
    """Return why this machine cannot hold all ranks in float32; None when it can."""
    return _missing_memory(sum(rank_elements(source, parallel)))


def streamed_memory_problem(source: SourceCheckpoint, parallel: ParallelSpec) -> str | None:
    """Return why this machine cannot hold the largest part of every rank in float32 at a time; None when it can."""
    largest: dict[int, int] = {}
    for file, shapes in enumerate(make_cutting_plan(source, parallel, "auto").files):
        parts: Counter[str] = Counter()
        for name, shape in shapes.items():
            parts[".".join(name.split(".")[:3]) if ".layers." in name else name] += math.prod(shape)
        # The processes take the stages in turn.
        rank = file % parallel.tp
        largest[rank] = max(largest.get(rank, 0), *parts.values())
    return _missing_memory(sum(largest.values()))


def _missing_memory(elements: int) -> str | None:
    # Each rank holds its arrays and the copy that the compiler packs for its kernels.
    needed, free = 2 * 4 * elements, psutil.virtual_memory().available
    return None if needed < free else f"needs {human_bytes(needed)} in float32, {human_bytes(free)} are available"


def compare_layers(
    source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec, console: Console | None = None
) -> LayerParity:
    """Run the rank files and the reference part by part, one part of each in memory at a time.

    Raises:
        ToolchainError: the machine has not the memory for the largest part of every rank.
        ParityError: the rank files cannot be run at all.
    """
    problem = streamed_memory_problem(source, parallel)
    if problem:
        raise ToolchainError(
            f"the rank files of {checkpoint} cannot be verified on this machine",
            why=f"their largest layer, embedding or head {problem}",
            fix="free memory, or run shardyard verify where there is more of it",
        )
    request = {"prompts": _prompts(source), "parallel": parallel.model_dump()}
    parts = source.config.num_hidden_layers + 1
    with _request(request) as folder, (console or Console(quiet=True)).progress("compare layers", parts) as advance:
        arguments = [checkpoint.absolute(), source.folder.absolute(), folder]
        with following(folder / PROGRESS, lambda line: advance(1, line)):
            _run(parallel.tp, LAYERS, arguments, checkpoint, source)
        found = json.loads((folder / "figures.json").read_text())
    return LayerParity(
        [LayerFigures(**figures) for figures in found["layers"]],
        [PromptParity(**figures) for figures in found["prompts"]],
        found["peak_bytes"],
    )


def compare_generation(
    source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec, console: Console
) -> list[PromptParity]:
    """Run the rank files as a whole world and the reference in this process, and compare.

    Raises:
        ParityError: the rank files cannot be run at all.
    """
    prompts = _prompts(source)
    with console.progress("compare logits", 2.0) as advance:
        with _request({"prompts": prompts, "new_tokens": NEW_TOKENS}) as folder:
            _run(parallel.tp * parallel.pp, WHOLE, [checkpoint.absolute(), folder], checkpoint, source)
            tokens: list[list[int]] = json.loads((folder / "tokens.json").read_text())
            logits: list[Array] = [np.load(folder / f"logits_{index}.npy") for index in range(len(prompts))]
        advance(1, "reference")
        wanted = reference_of(source, checkpoint, parallel).logits(tokens)
        advance(1, "done")
    return [compare_logits(len(prompt), *each) for prompt, *each in zip(prompts, logits, wanted, strict=True)]


def _prompts(source: SourceCheckpoint) -> list[list[int]]:
    return make_prompts(source.config.vocab_size, source.config.max_position_embeddings)


@contextmanager
def _request(content: dict[str, Any]) -> Iterator[Path]:
    """Give a folder with the request, for the answer to come into."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "request.json").write_text(json.dumps(content))
        yield Path(name)


def _run(ranks: int, module: str, arguments: Sequence[Path], checkpoint: Path, source: SourceCheckpoint) -> None:
    gigabytes = sum(entry.nbytes for entry in source.entries.values()) / 1e9
    try:
        run_world(ranks, module, [str(argument) for argument in arguments], timeout=120 + 240 * gigabytes)
    except LaunchError as error:
        said = [line for line in error.why.splitlines() if line.startswith("rank ")]
        raise ParityError(
            f"the rank files of {checkpoint} could not be run",
            why="; ".join(said) or error.why or error.what,
            fix="convert again; if that does not help, shardyard doctor says whether MPI works here",
        ) from None
