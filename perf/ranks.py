"""Where the ranks' time went during a load test, beside the closed formulas of what they must move."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardyard.endpoint import Endpoint

__all__ = ["COLUMNS", "RankFigures", "closed_formulas", "parse_ranks", "rank_rows", "read_ranks", "since"]

#: Figures of one rank by name: the fields of ``RankTimes``.
RankFigures = dict[str, float]
COLUMNS = ("rank", "steps", "compute", "wait for peers", "move", "receive", "send", "sums / step", "bytes / sum")
_SHARES = ("compute_s", "waiting_s", "moving_s", "receiving_s", "sending_s")
_LINE = re.compile(r'^shardyard_rank_times\{(?=[^}]*kind="(\w+)")(?=[^}]*rank="(\d+)")[^}]*\} (\S+)$', re.MULTILINE)
_TIMEOUT_S = 5.0
#: Ranks tell the leader, and the leader the metrics, within this time after the last step.
_SETTLE_S = 1.0


def read_ranks(endpoint: Endpoint) -> list[RankFigures]:
    """Return what each idle rank has told so far, once all of it has come; empty where there are no such metrics."""
    ranks = _read(endpoint)
    if ranks:
        time.sleep(_SETTLE_S)
        ranks = _read(endpoint)
    return ranks


def _read(endpoint: Endpoint) -> list[RankFigures]:
    try:
        with urllib.request.urlopen(endpoint.metrics_url, timeout=_TIMEOUT_S) as answer:
            return parse_ranks(answer.read().decode())
    except (OSError, ValueError):
        return []


def parse_ranks(text: str) -> list[RankFigures]:
    """Read the ranks' gauges from Prometheus text."""
    found: dict[int, RankFigures] = {}
    for kind, rank, value in _LINE.findall(text):
        found.setdefault(int(rank), {})[kind] = float(value)
    return [found[rank] for rank in sorted(found)]


def since(before: list[RankFigures], after: list[RankFigures]) -> list[RankFigures]:
    """Return what was added between two looks; all of it where the first one saw nothing."""
    if len(before) != len(after):
        return after
    return [
        {name: value - old.get(name, 0.0) for name, value in new.items()}
        for old, new in zip(before, after, strict=True)
    ]


def rank_rows(ranks: list[RankFigures]) -> list[list[str]]:
    """Return a table's rows: shares of the time that the rank was at work or waited for others within a step."""
    return [
        [
            str(number),
            f"{rank['steps']:.0f}",
            *(f"{rank[name] / max(1e-9, sum(rank[each] for each in _SHARES)):.1%}" for name in _SHARES),
            f"{rank['sums'] / max(1.0, rank['steps']):.0f}",
            f"{rank['sum_bytes'] / max(1.0, rank['sums']):.0f}",
        ]
        for number, rank in enumerate(ranks)
    ]


@dataclass(frozen=True)
class _Shape:
    layers: int
    hidden: int
    tp: int
    pp: int
    cp: int


def closed_formulas(engine: Path) -> Mapping[str, str]:
    """Return what the engine's ranks must do by its config.json, name → formula and value; empty if it has none.

    L layers, H hidden size, T tokens of a step, n = tp, p = pp, m micro-batches; activations travel in float32.
    """
    try:
        config = json.loads((engine / "config.json").read_text(encoding="utf-8"))["pretrained_config"]
        degrees = (config["mapping"][f"{name}_size"] for name in ("tp", "pp", "cp"))
        shape = _Shape(config["num_hidden_layers"], config["hidden_size"], *degrees)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = {}
    if shape.tp > 1:
        moved = 2 * (shape.tp - 1) / shape.tp * shape.hidden * 4
        average = " on average" if shape.pp > 1 else ""
        sums = f"2 · L / p = {2 * shape.layers / shape.pp:g}{average}"
        found["sums per step and stage"] = f"{sums}, and one where the embedding is cut"
        found["bytes that a rank puts into a sum"] = f"T · H · 4 = {shape.hidden * 4} · T"
        found["bytes that a sum must move per rank"] = f"2 · (n − 1) / n · T · H · 4 = {moved:g} · T"
    if shape.pp > 1:
        idle = (shape.pp - 1) / (2 * shape.pp - 1)
        found["bytes between stages"] = f"(p − 1) · T · H · 4 = {(shape.pp - 1) * shape.hidden * 4} · T"
        found["idle share of one round"] = f"(p − 1) / (m + p − 1) = {idle:.0%} at m = p; none while rounds follow"
    if shape.cp > 1:
        found["collectives for context"] = "one per layer and step, two where the step is cut, one for the head"
    return found
