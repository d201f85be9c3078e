"""Numeric parity: the rank files, run as a real MPI world in float32, against the unsharded reference.

The world answers every prompt greedily and gives the logits of all positions of prompt and answer; the reference then
computes the logits of the same tokens. Equal choices at every position mean that greedy generation is equal.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from shardyard.builder.dtypes import BY_NAME, Array
from shardyard.builder.plan import rank_elements
from shardyard.builder.quantization.rank_file import kept_algo
from shardyard.builder.quantization.rank_plan import make_rank_plan
from shardyard.builder.reference import Reference
from shardyard.builder.source import SourceCheckpoint, read_json
from shardyard.console import Console, human_bytes
from shardyard.errors import LaunchError, ParityError
from shardyard.mpi import run_world
from shardyard.spec import ParallelSpec

__all__ = ["MAX_RELATIVE", "PromptParity", "compare_numbers", "make_prompts", "memory_problem"]

#: Bar on the largest logit error, as a share of the prompt's largest logit; another order of float32 sums stays below.
MAX_RELATIVE = 1e-4
#: Lengths in tokens of the prompts that are asked, cut to what the model was trained for; the last is the long one.
LENGTHS = (1, 7, 33, 320)
NEW_TOKENS = 8
SEED = 0
MODULE = "shardyard.builder.verify_rank"


@dataclass(frozen=True)
class PromptParity:
    """One prompt's figures. ``agreeing`` of ``positions`` choose the reference's token (or one that ties with it)."""

    prompt_tokens: int
    new_tokens: int
    max_abs: float
    max_rel: float
    positions: int
    agreeing: int

    @property
    def passed(self) -> bool:
        """Whether both bars are met. A NaN anywhere does not pass."""
        return self.max_rel <= MAX_RELATIVE and self.agreeing == self.positions


def make_prompts(vocab_size: int, max_positions: int) -> list[list[int]]:
    """Return prompts of seeded random token ids."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    lengths = sorted({max(1, min(length, max_positions - NEW_TOKENS)) for length in LENGTHS})
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def memory_problem(source: SourceCheckpoint, parallel: ParallelSpec) -> str | None:
    """Return why this machine cannot hold all ranks in float32; None when it can."""
    # Each rank holds its arrays and the copy that the compiler packs for its kernels.
    needed = 2 * 4 * sum(rank_elements(source, parallel))
    free = psutil.virtual_memory().available
    return None if needed < free else f"needs {human_bytes(needed)} in float32, {human_bytes(free)} are available"


def compare_numbers(
    source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec, console: Console
) -> list[PromptParity]:
    """Run the rank files over MPI and the reference in this process, and compare.

    Raises:
        ParityError: the rank files cannot be run at all.
    """
    prompts = make_prompts(source.config.vocab_size, source.config.max_position_embeddings)
    with console.progress("compare logits", 2.0) as advance:
        tokens, logits = _run_world(checkpoint, prompts, parallel, source)
        advance(1, "reference")
        wanted = _reference(source, checkpoint, parallel).logits(tokens)
        advance(1, "done")
    return [_compare(*each) for each in zip(prompts, tokens, logits, wanted, strict=True)]


def _reference(source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec) -> Reference:
    """Return the reference of what was asked for, which is no error.

    Weights are rounded to the rank files' type; those that stay quantised are not, but FP8 ones that are joined share a
    scale.
    """
    config = read_json(checkpoint / "config.json")
    dtype = str(config.get("dtype"))
    if kept_algo(config):
        return Reference(make_rank_plan(source, parallel, dtype).source)
    return Reference(source, dtype if dtype in BY_NAME else None)


def _run_world(
    checkpoint: Path, prompts: list[list[int]], parallel: ParallelSpec, source: SourceCheckpoint
) -> tuple[list[list[int]], list[Array]]:
    """Return each prompt with its answer, and the logits of all their positions, float32 [tokens, vocab]."""
    gigabytes = sum(entry.nbytes for entry in source.entries.values()) / 1e9
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}))
        arguments = [str(checkpoint.absolute()), str(folder)]
        try:
            run_world(parallel.tp * parallel.pp, MODULE, arguments, timeout=120 + 120 * gigabytes)
        except LaunchError as error:
            said = [line for line in error.why.splitlines() if line.startswith("rank ")]
            raise ParityError(
                f"the rank files of {checkpoint} could not be run",
                why="; ".join(said) or error.why or error.what,
                fix="convert again; if that does not help, shardyard doctor says whether MPI works here",
            ) from None
        tokens: list[list[int]] = json.loads((folder / "tokens.json").read_text())
        return tokens, [np.load(folder / f"logits_{index}.npy") for index in range(len(prompts))]


def _compare(prompt: list[int], tokens: list[int], got: Array, wanted: Array) -> PromptParity:
    error, scale = float(np.abs(got - wanted).max()), float(np.abs(wanted).max())
    # Two logits closer than the bar are a tie, in which either choice is right.
    chosen = np.take_along_axis(wanted, got.argmax(axis=-1, keepdims=True), axis=-1)[:, 0]
    agreeing = int((chosen >= wanted.max(axis=-1) - MAX_RELATIVE * scale).sum())
    return PromptParity(
        prompt_tokens=len(prompt),
        new_tokens=len(tokens) - len(prompt),
        max_abs=error,
        max_rel=error / scale,
        positions=len(tokens),
        agreeing=agreeing,
    )
