"""Which GPU architectures can run which quantization, as TensorRT-LLM's builder and plugins have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardyard.builder.targets.trtllm_flags import Value

__all__ = ["KV_SUPPORT", "PLUGINS_OFF", "WEIGHT_SUPPORT", "Support", "blocked_plugins", "why_not"]


@dataclass(frozen=True)
class Support:
    """Runs on SM ``lowest`` and newer, but not on those of ``refused``."""

    lowest: int
    refused: range
    why: str


#: The builder's bounds for data-centre Blackwell: 100 ≤ SM < 120.
_BLACKWELL = range(100, 120)
_NONE = range(0)
_INT_WEIGHTS = Support(80, _BLACKWELL, "TensorRT-LLM's builder refuses int8 and int4 weight-only engines on SM 100–119")
_SMOOTH = Support(80, _BLACKWELL, "TensorRT-LLM's builder refuses SmoothQuant on SM 100–119")
_FP8 = Support(89, _NONE, "fp8 matrix products begin with Ada and Hopper (SM 89)")
_ROWS = Support(89, _BLACKWELL, "per-channel and per-token fp8 scales run on SM 89 and 90 alone")
_FP4 = Support(100, _NONE, "fp4 matrix products begin with Blackwell (SM 100)")

WEIGHT_SUPPORT: Mapping[str, Support] = {
    "W8A16": _INT_WEIGHTS,
    "W4A16": _INT_WEIGHTS,
    "W4A16_AWQ": _INT_WEIGHTS,
    "W4A16_GPTQ": _INT_WEIGHTS,
    "W8A16_GPTQ": _INT_WEIGHTS,
    "W4A8_AWQ": Support(89, _BLACKWELL, "int4 weights with fp8 activations run on SM 89 and 90 alone"),
    "W8A8_SQ_PER_CHANNEL": _SMOOTH,
    "W8A8_SQ_PER_TENSOR_PLUGIN": _SMOOTH,
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": _SMOOTH,
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": _SMOOTH,
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": _SMOOTH,
    "FP8": _FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": _ROWS,
    "FP8_BLOCK_SCALES": _FP8,
    "NVFP4": _FP4,
    "W4A8_NVFP4_FP8": _FP4,
}
KV_SUPPORT: Mapping[str, Support] = {
    "FP8": _FP8,
    "INT8": Support(80, _BLACKWELL, "TensorRT-LLM's builder refuses an int8 key/value cache on SM 100–119"),
    "NVFP4": _FP4,
}
#: Plugins without kernels for an architecture.
PLUGINS_OFF: Mapping[int, tuple[str, ...]] = {
    100: (
        "gemm_swiglu_plugin",
        "fp8_rowwise_gemm_plugin",
        "low_latency_gemm_plugin",
        "low_latency_gemm_swiglu_plugin",
    )
}


def why_not(table: Mapping[str, Support], algo: str | None, sm: int) -> str | None:
    """Return why ``algo`` cannot run on SM ``sm``; None where it can, or where nothing is known against it."""
    support = table.get(str(algo))
    if support is None or (sm >= support.lowest and sm not in support.refused):
        return None
    return support.why


def blocked_plugins(flags: Mapping[str, Value], sm: int) -> list[str]:
    """Return the requested plugins that have no kernels for SM ``sm``."""
    return [name for name in PLUGINS_OFF.get(sm, ()) if flags.get(name, "disable") != "disable"]
