"""What a quantized checkpoint says of itself: config.json's quantization_config, or ModelOpt's hf_quant_config.json.

Forms that are read, and where they are described:

- GPTQ (Frantar et al. 2022, arXiv:2210.17323) as AutoGPTQ, GPTQModel and transformers write it: ``quant_method`` gptq;
- AWQ (Lin et al. 2023, arXiv:2306.00978) as AutoAWQ's version ``gemm`` writes it: ``quant_method`` awq;
- whole numbers in groups as compressed-tensors packs them: ``format`` pack-quantized;
- FP8 as compressed-tensors, AutoFP8 (``quant_method`` fp8) and NVIDIA's ModelOpt write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from shardyard.errors import CheckpointError

__all__ = ["SourceFormat", "parse_format"]

Packing = Literal["gptq", "awq", "packed", "fp8"]
Raw = Mapping[str, Any]
_FIX = "give the unquantized checkpoint and let quantization: w8a16 or w4a16 quantize it"


@dataclass(frozen=True)
class SourceFormat:
    """How a checkpoint's linear weights are stored. ``algo`` is TensorRT-LLM's name of the same thing.

    ``bits`` and ``group`` (columns; 0: one group per row) count for whole numbers only; ``zero_offset`` is what is
    added to a stored zero point; ``symmetric``: none is stored, all are in the middle of the numbers.
    ``static_activations``: FP8 with one scale for a layer's input, which the checkpoint holds. ``kv_cache`` is
    TensorRT-LLM's name of the cache's type, None where the checkpoint names none.
    """

    method: str
    packing: Packing
    algo: str
    bits: int = 8
    group: int = 0
    zero_offset: int = 0
    symmetric: bool = False
    static_activations: bool = False
    kv_cache: str | None = None


def parse_format(config: Raw, modelopt: Raw | None, path: Path) -> SourceFormat | None:
    """Return the form of a checkpoint from its config.json and hf_quant_config.json; None when it is not quantized.

    Raises:
        CheckpointError: the form is not one that can be read, with the reason.
    """
    raw = config.get("quantization_config")
    if raw is None and modelopt is not None:
        raw = {"quant_method": "modelopt", **modelopt}
    if raw is None:
        return None
    method = raw.get("quant_method") if isinstance(raw, Mapping) else raw
    if not isinstance(raw, Mapping) or method not in _PARSERS:
        _refuse(path, f"quant_method={method!r}", f"known forms: {', '.join(_PARSERS)}")
    return _PARSERS[str(method)](raw, path)


def _refuse(path: Path, what: str, why: str, fix: str = _FIX) -> NoReturn:
    raise CheckpointError(f"{path}: quantized weights with {what} are not supported", why=why, fix=fix)


def _check(path: Path, raw: Raw, key: str, fine: tuple[object, ...], why: str) -> None:
    value = raw.get(key)
    if value is not None and value not in fine:
        _refuse(path, f"{key}={value!r}", why)


def _bits_and_group(raw: Raw, path: Path, bits: tuple[int, ...]) -> tuple[int, int]:
    found, group = raw.get("bits", 4), raw.get("group_size", 128)
    if found not in bits:
        _refuse(path, f"bits={found!r}", f"possible: {', '.join(map(str, bits))}")
    if type(group) is not int or (group < 1 and group != -1):
        _refuse(path, f"group_size={group!r}", "it is the number of input columns that share a scale, or -1")
    return int(found), max(0, group)


def _gptq(raw: Raw, path: Path) -> SourceFormat:
    bits, group = _bits_and_group(raw, path, (4, 8))
    # desc_act reorders the columns by their activations: groups are then no slices, and no kernel takes them.
    if raw.get("desc_act"):
        why = "its groups follow the order of the activations (g_idx): they are no slices, which TensorRT-LLM needs"
        _refuse(path, "desc_act=true", why, "quantize the model again with desc_act=False, or take another checkpoint")
    form = raw.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        _refuse(path, f"checkpoint_format={form!r}", "possible: gptq, gptq_v2")
    return SourceFormat("gptq", "gptq", f"W{bits}A16_GPTQ", bits, group, zero_offset=int(form == "gptq"))


def _awq(raw: Raw, path: Path) -> SourceFormat:
    if raw.get("quant_algo"):
        return _modelopt(raw, path)
    older = {"bits": raw.get("w_bit", 4), "group_size": raw.get("q_group_size", 128)}
    bits, group = _bits_and_group({**older, **raw}, path, (4,))
    version = str(raw.get("version", "gemm")).lower()
    if version != "gemm":
        _refuse(path, f"version={version!r}", "only AutoAWQ's gemm packing is known")
    # TensorRT-LLM reads AutoAWQ's weights by the kernels of W4A16_GPTQ, with zero points.
    return SourceFormat("awq", "awq", "W4A16_GPTQ", bits, group)


def _fp8(raw: Raw, path: Path) -> SourceFormat:
    if raw.get("weight_block_size") is not None:
        _refuse(path, f"weight_block_size={raw['weight_block_size']}", "TensorRT engines have no FP8 with block scales")
    _check(path, raw, "fmt", ("e4m3", "float8_e4m3fn"), "the engines' FP8 is e4m3")
    scheme = raw.get("activation_scheme", "static")
    if scheme != "static":
        _refuse(path, f"activation_scheme={scheme!r}", _NO_DYNAMIC)
    kv_cache = "FP8" if raw.get("kv_cache_scheme") else None
    return SourceFormat("fp8", "fp8", "FP8", static_activations=True, kv_cache=kv_cache)


_NO_DYNAMIC = "TensorRT-LLM's FP8 with one scale per weight needs the activations' scale in the checkpoint"


def _compressed(raw: Raw, path: Path) -> SourceFormat:
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        _refuse(path, "several config_groups", "one scheme for all linear layers can be written")
    group = next(iter(groups.values()))
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    if raw.get("format") == "pack-quantized":
        return _packed(weights, inputs, raw, path)
    if (weights.get("type"), weights.get("num_bits")) != ("float", 8) or raw.get("format") != "float-quantized":
        what = f"format={raw.get('format')!r}, {weights.get('num_bits')} bits of type {weights.get('type')!r}"
        _refuse(path, what, "of compressed-tensors, float-quantized with 8 bits and pack-quantized are known")
    strategy, dynamic = weights.get("strategy"), bool(inputs.get("dynamic"))
    scheme = (strategy, inputs.get("strategy"), dynamic)
    if scheme not in _COMPRESSED:
        what = f"weights per {strategy} and {'dynamic ' * dynamic}activations per {inputs.get('strategy')}"
        _refuse(path, what, "possible: both per tensor and static; weights per channel, activations dynamic per token")
    algo = _COMPRESSED[scheme]
    kv_cache = _compressed_cache(raw, path)
    return SourceFormat("compressed-tensors", "fp8", algo, static_activations=not dynamic, kv_cache=kv_cache)


def _packed(weights: Raw, inputs: Raw, raw: Raw, path: Path) -> SourceFormat:
    """Whole numbers, with one scale per group or per row; activations stay as they are."""
    for section, key, fine, why in (
        (weights, "type", ("int",), "packed numbers are whole ones"),
        (weights, "num_bits", (4, 8), "possible: 4, 8"),
        (weights, "strategy", ("group", "channel"), "possible: group, channel"),
        # With actorder=group a g_idx follows, which is refused where it mixes the columns.
        (inputs, "num_bits", (), "activations in whole numbers are not known"),
    ):
        _check(path, section, key, fine, why)
    described = {"bits": weights.get("num_bits"), "group_size": weights.get("group_size") or -1}
    bits, group = _bits_and_group(described, path, (4, 8))
    return SourceFormat(
        "compressed-tensors",
        "packed",
        f"W{bits}A16_GPTQ",
        bits,
        group if weights.get("strategy") == "group" else 0,
        symmetric=weights.get("symmetric", True) is True,
        kv_cache=_compressed_cache(raw, path),
    )


_COMPRESSED = {
    ("tensor", "tensor", False): "FP8",
    ("channel", "token", True): "FP8_PER_CHANNEL_PER_TOKEN",
}


def _compressed_cache(raw: Raw, path: Path) -> str | None:
    scheme = raw.get("kv_cache_scheme")
    if not scheme:
        return None
    if (scheme.get("type"), scheme.get("num_bits")) != ("float", 8):
        _refuse(path, f"kv_cache_scheme={dict(scheme)}", "of calibrated key/value caches, FP8 is known")
    return "FP8"


def _modelopt(raw: Raw, path: Path) -> SourceFormat:
    section = raw.get("quantization", raw)
    algo = section.get("quant_algo")
    cache = section.get("kv_cache_quant_algo") or _compressed_cache(section, path)
    if algo not in _MODELOPT:
        _refuse(path, f"ModelOpt's quant_algo={algo!r}", f"possible: {', '.join(_MODELOPT)}")
    if cache not in (None, "FP8", "INT8"):
        _refuse(path, f"kv_cache_quant_algo={cache!r}", "possible: FP8, INT8")
    return SourceFormat("modelopt", "fp8", algo, static_activations=_MODELOPT[algo], kv_cache=cache)


#: ModelOpt's algorithms that can be read, and whether they hold the activations' scales.
_MODELOPT = {"FP8": True, "FP8_PER_CHANNEL_PER_TOKEN": False}

_PARSERS: dict[str, Callable[[Raw, Path], SourceFormat]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
