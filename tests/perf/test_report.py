"""The report is one file that needs no network, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from shardyard.perf.records import Record
from shardyard.perf.report import render
from shardyard.perf.results import Results

MakeRecord = Callable[..., Record]
ResultsOf = Callable[..., tuple[Results, list[Any]]]
EMPTY = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture
def html(make_record: MakeRecord, word: str, results_of: ResultsOf) -> str:
    records = [make_record(s, [(s + 20, word), (s + 35, word), (s + 45, word)], index=s) for s in range(0, 90, 10)]
    records.append(make_record(95, [], index=99, error="<script>alert('x')</script> & more", warmup=False))
    results, measured = results_of(records, slo={"ttft_ms": 5.0})
    return render(results, records, measured)


class _Balance(HTMLParser):
    """Every element that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_reaches_for_nothing(html: str) -> None:
    assert "://" not in html
    assert not re.search(r"<(link|script|img|iframe|object|embed|base)\b", html)
    assert not re.search(r"""(@import|url\((?!#)|\bsrc=)""", html)
    assert set(re.findall(r'href="(.)', html)) <= {"#"}


def test_it_is_well_formed(html: str) -> None:
    balance = _Balance()
    balance.feed(html)
    assert balance.open == []
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 6
    for plot in plots:
        ElementTree.fromstring(plot.replace("<svg", '<svg xmlns:xlink="x"', 1))


def test_what_comes_from_outside_is_escaped(html: str) -> None:
    assert "&lt;script&gt;alert(" in html
    assert "a &lt;CPU&gt; &amp; more" in html


def test_it_says_what_it_means(html: str) -> None:
    wanted = [
        "TTFT",
        "(request latency − TTFT) / (OSL − 1)",
        "goodput",
        "shardyard perf p.yaml",
        "9",
        "1 errors",
        "valid",
    ]
    for text in wanted:
        assert text in html, text


def test_one_request_of_one_chunk_is_enough(make_record: MakeRecord, word: str, results_of: ResultsOf) -> None:
    records = [make_record(0, [(20, word)])]
    results, measured = results_of(records)
    assert "icl_ms" not in results.metrics
    assert render(results, records, measured).count("<svg") == 4


def test_a_run_that_is_not_valid_says_so(make_record: MakeRecord, word: str, results_of: ResultsOf) -> None:
    records = [make_record(0, [(20, word)])]
    results, measured = results_of(records, {"cpu_share": 0.99})
    assert '<span class="badge invalid">not valid</span>' in render(results, records, measured)
