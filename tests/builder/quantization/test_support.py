"""What no GPU of an architecture can run is refused, with what it can run instead."""

from __future__ import annotations

import pytest

from shardyard.builder.quantization.support import check, problems
from shardyard.errors import PipelineError


@pytest.mark.parametrize(
    ("algo", "kv", "sm"),
    [
        ("W8A16", None, 80),
        ("w4a16", "int8", 89),
        ("W4A16_GPTQ", None, 90),
        ("W4A16_GPTQ", None, 120),
        ("FP8", "FP8", 89),
        ("FP8", "FP8", 100),
        ("FP8_PER_CHANNEL_PER_TOKEN", None, 90),
        ("NVFP4", "FP8", 100),
        (None, None, 100),
        ("none", None, 103),
    ],
)
def test_possible(algo: str | None, kv: str | None, sm: int) -> None:
    check(algo, kv, sm)


@pytest.mark.parametrize(
    ("algo", "kv", "sm", "said"),
    [
        ("W8A16", None, 100, "int8 and int4 weights"),
        ("w4a16", None, 103, "int8 and int4 weights"),
        ("W4A16_AWQ", None, 119, "FP8 checkpoint"),
        ("W8A8_SQ_PER_CHANNEL", None, 100, "SmoothQuant"),
        (None, "INT8", 110, "an FP8 key/value cache"),
        ("FP8", None, 80, "FP8 weights"),
        (None, "fp8", 86, "an INT8 key/value cache"),
        ("FP8_PER_CHANNEL_PER_TOKEN", None, 100, "FP8 with one scale per weight"),
        ("NVFP4", None, 90, "from SM100 on"),
    ],
)
def test_refused_with_a_way_out(algo: str | None, kv: str | None, sm: int, said: str) -> None:
    with pytest.raises(PipelineError) as caught:
        check(algo, kv, sm)
    assert said in caught.value.why
    assert f"SM{sm}" in caught.value.what


def test_weights_and_cache_are_both_named() -> None:
    assert len(problems("W8A16", "INT8", 100)) == 2
