"""The numeric half of verify: layer by layer always, and as a whole world where this machine holds all ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardyard.builder.proof.layer_figures import MAX_RELATIVE, PromptParity
from shardyard.builder.proof.parity import LayerParity, compare_generation, compare_layers, memory_problem
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.console import Console, human_bytes
from shardyard.errors import ParityError
from shardyard.spec import Pipeline

__all__ = ["Numbers", "check_numbers"]

_FIX = "convert again; if it happens again, the family's weight table is wrong: compare it with the source"


@dataclass(frozen=True)
class Numbers:
    """What came of both runs; ``generated`` is empty where ``not_generated`` says why."""

    layers: LayerParity
    generated: list[PromptParity]
    not_generated: str | None

    @property
    def prompts(self) -> list[PromptParity]:
        """Every prompt of both runs."""
        return [*self.layers.prompts, *self.generated]

    def to_json(self) -> dict[str, Any]:
        """Return what the certificate says."""
        return {
            "max_abs": max(p.max_abs for p in self.prompts),
            "max_rel": max(p.max_rel for p in self.prompts),
            "max_rel_allowed": MAX_RELATIVE,
            "greedy_agreement": sum(p.agreeing for p in self.prompts) / sum(p.positions for p in self.prompts),
            "layers": [asdict(figures) for figures in self.layers.layers],
            "prompts": [asdict(prompt) for prompt in self.layers.prompts],
            "generated": [asdict(prompt) for prompt in self.generated],
            "not_generated": self.not_generated,
            "peak_bytes_of_ranks": self.layers.peak_bytes,
        }


def check_numbers(pipeline: Pipeline, source: SourceCheckpoint, checkpoint: Path, console: Console) -> Numbers:
    """Run the rank files and compare them with the reference; print the tables.

    Raises:
        ParityError: a layer, the logits or the greedy choices miss the bar, or the rank files cannot be run.
    """
    degrees = f"tp={pipeline.parallel.tp} pp={pipeline.parallel.pp}, float32"
    layers = compare_layers(source, checkpoint, pipeline.parallel, console)
    _show_layers(layers, degrees, console)
    _check_layers(layers, source, checkpoint)
    problem = memory_problem(source, pipeline.parallel)
    if problem:
        why = f"all ranks at once: {problem}; each layer was run alone"
        console.stage("verify", f"numbers: {why}")
        return Numbers(layers, [], why)
    generated = compare_generation(source, checkpoint, pipeline.parallel, console)
    _show_prompts(generated, f"the world of all ranks ({degrees})", console)
    _check_prompts(generated, source, checkpoint)
    return Numbers(layers, generated, None)


def _show_layers(layers: LayerParity, degrees: str, console: Console) -> None:
    rows = [(f.part, f"{f.max_abs:.2e}", f"{f.max_rel:.2e}") for f in layers.layers]
    title = f"output of each layer ({degrees}) against the unsharded reference"
    console.table(title, ("part", "max abs error", "max rel error"), rows)
    _show_prompts(layers.prompts, f"the layers ({degrees})", console)
    peak = human_bytes(sum(layers.peak_bytes))
    console.stage("verify", f"numbers: one layer at a time, {peak} resident at most over all ranks")


def _show_prompts(prompts: list[PromptParity], what: str, console: Console) -> None:
    rows = [
        (p.prompt_tokens, p.new_tokens, f"{p.max_abs:.2e}", f"{p.max_rel:.2e}", f"{p.agreeing}/{p.positions}")
        for p in prompts
    ]
    columns = ("prompt tokens", "new tokens", "max abs error", "max rel error", "greedy agreement")
    console.table(f"logits of {what} against the unsharded reference", columns, rows)


def _check_layers(layers: LayerParity, source: SourceCheckpoint, checkpoint: Path) -> None:
    first = layers.first_difference
    if first:
        raise ParityError(
            f"the rank files of {checkpoint} do not compute what {source.folder} does",
            why=f"{first.part} is the first that differs: off by {first.max_rel:.1e} of its scale "
            f"(bar: {MAX_RELATIVE:g})",
            fix=_FIX,
        )
    _check_prompts(layers.prompts, source, checkpoint)


def _check_prompts(prompts: list[PromptParity], source: SourceCheckpoint, checkpoint: Path) -> None:
    missed = [p for p in prompts if not p.passed]
    if missed:
        worst = max(missed, key=lambda p: (p.max_rel != p.max_rel, p.max_rel))
        raise ParityError(
            f"the rank files of {checkpoint} do not compute what {source.folder} does",
            why=f"every layer is right and the logits are off by up to {worst.max_rel:.1e} of their scale (bar: "
            f"{MAX_RELATIVE:g}), greedy choices agree at {worst.agreeing} of {worst.positions} positions: "
            "the final norm, lm_head, or how the ranks pass on what they compute",
            fix=_FIX,
        )
