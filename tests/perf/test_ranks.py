"""Ranks' times: from metrics to a table, and what must be moved by the engine's shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.perf.ranks import COLUMNS, closed_formulas, parse_ranks, rank_rows, since

NAMES = ["steps", "compute_s", "waiting_s", "moving_s", "receiving_s", "sending_s", "sums", "sum_bytes", "sent_bytes"]


def metrics(*ranks: list[float]) -> str:
    lines = ["# TYPE shardyard_rank_times gauge", 'nv_trt_llm_general_metrics{kind="steps",rank="0"} 7']
    for number, values in enumerate(ranks):
        for name, value in zip(NAMES, values, strict=True):
            lines.append(f'shardyard_rank_times{{kind="{name}",model="tensorrt_llm",rank="{number}"}} {value:f}')
    return "\n".join([*reversed(lines), ""])


def test_a_load_test_has_what_was_added_while_it_ran() -> None:
    before = parse_ranks(metrics([1, 0.5, 0, 0, 0, 0, 4, 64, 9], [1] * 9))
    after = parse_ranks(metrics([11, 2.5, 1, 0.5, 0, 0, 44, 1344, 9], [3] * 9))
    added = since(before, after)
    assert [rank["steps"] for rank in added] == [10, 2]
    first, _ = rank_rows(added)
    assert first == ["0", "10", "57.1%", "28.6%", "14.3%", "0.0%", "0.0%", "4", "32"]
    assert len(first) == len(COLUMNS)
    assert since([], after) == after


def test_an_endpoint_without_the_metrics() -> None:
    assert parse_ranks('nv_inference_count{model="x"} 1\n') == []


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ((1, 1, 1), []),
        ((2, 1, 1), ["2 · L / p = 48", "T · H · 4 = 3584 · T", "2 · (n − 1) / n · T · H · 4 = 3584 · T"]),
        ((1, 2, 1), ["(p − 1) · T · H · 4 = 3584 · T", "33% at m = p"]),
        ((4, 2, 2), ["2 · L / p = 24", "2 · (n − 1) / n · T · H · 4 = 5376 · T", "one per layer and step"]),
    ],
)
def test_closed_formulas(tmp_path: Path, degrees: tuple[int, int, int], expected: list[str]) -> None:
    mapping = dict(zip(("tp_size", "pp_size", "cp_size"), degrees, strict=True))
    content = {"pretrained_config": {"num_hidden_layers": 24, "hidden_size": 896, "mapping": mapping}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    text = "\n".join(closed_formulas(tmp_path).values())
    assert all(part in text for part in expected)
    assert bool(text) == bool(expected)


def test_an_engine_that_is_not_there_has_no_formulas(tmp_path: Path) -> None:
    assert closed_formulas(tmp_path) == {}
