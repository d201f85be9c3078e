"""The last lines of ``up`` and ``perf``: what was built, how fast it was, what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shardyard.cli.context import Context
from shardyard.console import Console, human_bytes
from shardyard.stage import StageResult

if TYPE_CHECKING:
    from shardyard.perf.results import Results

__all__ = ["Measured", "print_measured", "print_summary"]

#: A load test's folder and what it measured.
Measured = tuple[Path, "Results"]


def print_summary(
    context: Context, made: Mapping[str, StageResult], measured: Measured | None, seconds: float, pipeline_file: Path
) -> None:
    """Print what ``up`` made and measured."""
    rows = []
    for name, result in made.items():
        size = sum(stamp.size for stamp in result.manifest.outputs.values())
        rows.append((name, str(result.folder), human_bytes(size), "up to date" if result.fresh else "made"))
    context.console.result("")
    context.console.table(f"{context.pipeline.name}: done in {seconds:.0f} s", ["stage", "folder", "size", ""], rows)
    if measured:
        print_measured(context.console, *measured)
    context.console.result(
        "next:\n"
        f"  shardyard serve {pipeline_file}\n"
        f'  shardyard infer {pipeline_file} "Once upon a time"      in another terminal\n'
        f"  shardyard trace {measured[0] if measured else context.work.model_repo} --check"
    )


def print_measured(console: Console, folder: Path, results: Results) -> None:
    """Print a load test's headline, its percentiles, and where the report lies."""
    from shardyard.perf import ranks
    from shardyard.perf.report import REPORT
    from shardyard.perf.tables import COLUMNS, headline, rows

    console.table(f"load test {results.name}", COLUMNS, rows(results))
    for name, value in headline(results):
        console.result(f"{name}: {value}")
    if len(results.ranks) > 1:
        console.table("shares of each rank's time in steps", ranks.COLUMNS, ranks.rank_rows(results.ranks))
        for name, formula in results.closed_formulas.items():
            console.result(f"{name}: {formula}")
    console.result(f"report: {folder / REPORT}")
