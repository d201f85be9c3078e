"""Which GPU architectures run which quantisation under TensorRT-LLM's engines: checked before the first GPU minute.

Sources: TensorRT-LLM's builder and plugin checks (SM100 to SM119 take no int8 or int4 weights, no INT8 key/value cache
and no SmoothQuant; SM100 has no row-wise FP8 product) and its support matrix (FP8 from Ada, SM89, on; FP4 from
Blackwell, SM100, on). Read, not run: there was no GPU to try them on.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.errors import PipelineError

__all__ = ["check", "problems"]


@dataclass(frozen=True)
class _Limit:
    """What a set of quantisations needs: an architecture of at least ``first``, outside ``gap`` (both ends count)."""

    names: tuple[str, ...]
    what: str
    first: int
    gap: tuple[int, int] | None
    instead: str


_WEIGHT_ONLY = ("W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ")
_SMOOTH = (
    "W8A8_SQ_PER_CHANNEL",
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
)
_BLACKWELL = (100, 119)
_ANY = 75
_PLAIN = "quantization: none"
_WEIGHTS = (
    _Limit(_WEIGHT_ONLY, "int8 and int4 weights", _ANY, _BLACKWELL, f"an FP8 checkpoint, or {_PLAIN}"),
    _Limit(("W4A8_AWQ",), "int4 weights with FP8 activations", 89, _BLACKWELL, "W4A16_AWQ"),
    _Limit(_SMOOTH, "SmoothQuant", _ANY, _BLACKWELL, f"an FP8 checkpoint, or {_PLAIN}"),
    _Limit(("FP8",), "FP8 weights", 89, None, "w8a16 of the unquantised checkpoint, or quantization: dequantized"),
    _Limit(("FP8_PER_CHANNEL_PER_TOKEN",), "FP8 weights per channel", 89, (100, 119), "FP8 with one scale per weight"),
    _Limit(("NVFP4", "W4A8_NVFP4_FP8"), "FP4 weights", 100, None, f"w4a16, or {_PLAIN}"),
)
_CACHES = (
    _Limit(("INT8",), "an INT8 key/value cache", _ANY, _BLACKWELL, "an FP8 key/value cache"),
    _Limit(("FP8",), "an FP8 key/value cache", 89, None, "an INT8 key/value cache, or none"),
    _Limit(("NVFP4",), "an FP4 key/value cache", 100, None, "an FP8 key/value cache"),
)


def problems(quantization: str | None, kv: str | None, sm: int) -> list[str]:
    """Return why architecture ``sm`` (89 is Ada, 90 Hopper, 100 Blackwell) cannot run these; empty when it can.

    ``quantization`` and ``kv`` are TensorRT-LLM's names (W4A16, FP8, …) in any case, the pipeline file's, or None.
    """
    found = []
    for limits, name in ((_WEIGHTS, quantization), (_CACHES, kv)):
        for limit in limits:
            if name and name.upper() in limit.names and not _runs(limit, sm):
                found.append(f"SM{sm} has no {limit.what} ({name.upper()}): {_range(limit)}; possible: {limit.instead}")
    return found


def check(quantization: str | None, kv: str | None, sm: int) -> None:
    """Check that GPUs of architecture ``sm`` run this quantisation; arguments as for ``problems``.

    Raises:
        PipelineError: they do not; it says since when or until when they do.
    """
    found = problems(quantization, kv, sm)
    if found:
        raise PipelineError(
            f"the quantisation cannot run on a GPU of architecture SM{sm}",
            why="; ".join(found),
            fix="choose what is named as possible, or another GPU",
        )


def _runs(limit: _Limit, sm: int) -> bool:
    return sm >= limit.first and not (limit.gap and limit.gap[0] <= sm <= limit.gap[1])


def _range(limit: _Limit) -> str:
    first = f"from SM{limit.first} on"
    return first if limit.gap is None else f"{first} but not from SM{limit.gap[0]} to SM{limit.gap[1]}"
