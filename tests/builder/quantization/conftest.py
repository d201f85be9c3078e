"""Tiny quantized checkpoints, packed number by number as their formats are described, and what they stand for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCAB, LAYERS = 128, 256, 4, 2, 32, 70, 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
#: How MoE families differ, by architecture: keys of config.json, where the experts are, and their gate, up and down.
MOE_INNER, EXPERTS = 128, 4
_MOE_SIZES = {"num_experts_per_tok": 2, "moe_intermediate_size": MOE_INNER, "num_experts": EXPERTS}
_QWEN = ("mlp", ("gate_proj", "up_proj", "down_proj"))
MOE: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "MixtralForCausalLM": (
        {"intermediate_size": MOE_INNER, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        "block_sparse_moe",
        ("w1", "w3", "w2"),
    ),
    "Qwen2MoeForCausalLM": ({**_MOE_SIZES, "shared_expert_intermediate_size": INNER, "mlp_only_layers": [0]}, *_QWEN),
    "Qwen3MoeForCausalLM": ({**_MOE_SIZES, "head_dim": HEAD, "mlp_only_layers": []}, *_QWEN),
}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = dict[str, Any]
Quantize = Callable[[np.random.Generator, str, int, int], tuple[Tensors, Any]]


def packed(numbers: Any, bits: int, order: tuple[int, ...] | None = None) -> Any:
    """Pack the last axis into int32, lowest bits first; ``order``: which number of each 32 bits goes to each place."""
    each = 32 // bits
    out = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // each), np.uint32)
    for place in range(each):
        number = place if order is None else order[place]
        out |= numbers[..., number::each].astype(np.uint32) << np.uint32(place * bits)
    return out.view(np.int32)


def _whole_numbers(generator: Any, out: int, columns: int, group: int, bits: int, least: int) -> tuple[Any, ...]:
    """Draw codes [out, in], zeros and scales [out, groups], and what they stand for."""
    codes = generator.integers(0, 1 << bits, (out, columns))
    zeros = generator.integers(least, (1 << bits) + least, (out, columns // group))
    scales = (generator.random((out, columns // group)) * 0.02 * 16 / (1 << bits) + 0.001).astype(np.float16)
    wide = (np.repeat(each, group, axis=1).astype(np.float32) for each in (zeros, scales))
    return codes, zeros, scales, (codes.astype(np.float32) - next(wide)) * next(wide)


def gptq(group: int = 64, bits: int = 4, version: int = 1) -> Quantize:
    """GPTQ's tensors: rows of qweight hold 32 / bits input columns; zeros are stored less one in version 1."""

    def make(generator: Any, name: str, out: int, columns: int) -> tuple[Tensors, Any]:
        codes, zeros, scales, value = _whole_numbers(generator, out, columns, group, bits, int(version == 1))
        stored = zeros - int(version == 1)
        tensors = {
            "qweight": packed(codes, bits).T,
            "qzeros": packed(stored.T, bits),
            "scales": scales.T,
            "g_idx": (np.arange(columns) // group).astype(np.int32),
        }
        return {f"{name}.{role}": np.ascontiguousarray(tensor) for role, tensor in tensors.items()}, value

    return make


def awq(group: int = 64) -> Quantize:
    """AutoAWQ's gemm tensors: packed along the output columns, in their own order."""

    def make(generator: Any, name: str, out: int, columns: int) -> tuple[Tensors, Any]:
        codes, zeros, scales, value = _whole_numbers(generator, out, columns, group, 4, 0)
        tensors = {
            "qweight": packed(codes.T, 4, AWQ_COLUMNS),
            "qzeros": packed(zeros.T, 4, AWQ_COLUMNS),
            "scales": scales.T,
        }
        return {f"{name}.{role}": np.ascontiguousarray(tensor) for role, tensor in tensors.items()}, value

    return make


def compressed(group: int | None = 64, bits: int = 4, symmetric: bool = True) -> Quantize:
    """compressed-tensors' tensors: numbers with signs plus half their range, packed along the input columns."""

    def make(generator: Any, name: str, out: int, columns: int) -> tuple[Tensors, Any]:
        codes, zeros, scales, value = _whole_numbers(generator, out, columns, group or columns, bits, 0)
        tensors = {"weight_packed": packed(codes, bits), "weight_scale": scales, "weight_shape": np.array(codes.shape)}
        if symmetric:
            value = (codes - (1 << (bits - 1))).astype(np.float32) * np.repeat(scales, group or columns, axis=1)
        else:
            tensors["weight_zero_point"] = np.ascontiguousarray(packed(zeros.T, bits).T)
        return {f"{name}.{role}": tensor for role, tensor in tensors.items()}, value

    return make


def _scheme(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "input_activations": None, "weights": {"type": "int", "dynamic": False, **weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


def fp8(per_channel: bool = False, static: bool = True, exact: bool = False) -> Quantize:
    """FP8's tensors; ``exact``: scales are powers of two, so that moving from one to another loses next to nothing."""

    def make(generator: Any, name: str, out: int, columns: int) -> tuple[Tensors, Any]:
        numbers = (generator.standard_normal((out, columns)) * 60).astype(ml_dtypes.float8_e4m3fn)
        scale = generator.random((out, 1) if per_channel else (1,)).astype(np.float32) * 0.002 + 0.0005
        if exact:
            scale = np.exp2(np.rint(np.log2(scale))).astype(np.float32)
        tensors: Tensors = {f"{name}.weight": numbers, f"{name}.weight_scale": scale}
        if static:
            tensors[f"{name}.input_scale"] = generator.random(1).astype(np.float32)
        return tensors, numbers.astype(np.float32) * scale

    return make


@dataclass
class Sample:
    """A checkpoint's folder, and every weight that it stands for as float32, by plain names."""

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


def _linears(config: dict[str, Any], layer: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the quantized layers of a decoder layer and their shapes [out, in]."""
    architecture, moe = config["architectures"][0], layer not in config.get("mlp_only_layers", ())
    sparse = architecture in MOE and moe
    for name, shape in LINEARS.items():
        if not (sparse and name.startswith("mlp.")):
            yield name, shape
    if not sparse:
        return
    _, block, names = MOE[architecture]
    for expert in range(EXPERTS):
        for name, shape in zip(names, ((MOE_INNER, HIDDEN), (MOE_INNER, HIDDEN), (HIDDEN, MOE_INNER)), strict=True):
            yield f"{block}.experts.{expert}.{name}", shape
    if config.get("shared_expert_intermediate_size"):
        for name in ("gate", "up", "down"):
            yield f"mlp.shared_expert.{name}_proj", LINEARS[f"mlp.{name}_proj"]


def _moe_shapes(config: dict[str, Any], layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the plain tensors that a decoder layer of a MoE family has besides the norms."""
    architecture = config["architectures"][0]
    if architecture == "Qwen2MoeForCausalLM":
        yield from ((f"self_attn.{part}_proj.bias", LINEARS[f"self_attn.{part}_proj"][:1]) for part in "qkv")
    if architecture == "Qwen3MoeForCausalLM":
        yield from ((f"self_attn.{part}_norm.weight", (HEAD,)) for part in "qk")
    if architecture in MOE and layer not in config.get("mlp_only_layers", ()):
        yield f"{MOE[architecture][1]}.gate.weight", (EXPERTS, HIDDEN)
        if config.get("shared_expert_intermediate_size"):
            yield "mlp.shared_expert_gate.weight", (1, HIDDEN)


def _plain(generator: Any, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (HIDDEN,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _moe_shapes(config, layer)}
    for name, shape in shapes.items():
        yield name, (generator.standard_normal(shape) * 0.5 + 0.1).astype(np.float16)


#: For each kind of checkpoint, what its config.json says and how its layers are made.
KINDS: dict[str, tuple[dict[str, Any], Quantize]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}, gptq()),
    "gptq_g32": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}, gptq(32)),
    "gptq_v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"},
        gptq(version=2),
    ),
    "gptq_int8": ({"quant_method": "gptq", "bits": 8, "group_size": 64}, gptq(bits=8)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}, awq()),
    "packed": (_scheme(num_bits=4, strategy="group", group_size=64, symmetric=True), compressed()),
    "packed_zeros": (
        _scheme(num_bits=4, strategy="group", group_size=32, symmetric=False),
        compressed(32, symmetric=False),
    ),
    "packed_int8": (
        _scheme(num_bits=8, strategy="channel", group_size=None, symmetric=True),
        compressed(None, 8),
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8(exact=True)),
    "fp8_fused": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8()),
    "fp8_channel": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
                    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
                }
            },
            "ignore": ["lm_head"],
        },
        fp8(per_channel=True, static=False),
    ),
}


@pytest.fixture(scope="session")
def write_sample() -> Callable[..., Sample]:
    """Write a checkpoint of one of KINDS; ``change`` may alter (config, tensors) before they are written."""

    def write(
        folder: Path,
        kind: str,
        *,
        architecture: str = "LlamaForCausalLM",
        seed: int = 0,
        config: dict[str, Any] | None = None,
        change: Callable[[dict[str, Any], Tensors], None] | None = None,
    ) -> Sample:
        generator = np.random.default_rng(seed)
        described, quantize = KINDS[kind]
        moe = MOE[architecture][0] if architecture in MOE else {}
        named = {"architectures": [architecture], "quantization_config": copy.deepcopy(described)}
        raw = {**CONFIG, **moe, **named, **(config or {})}
        sample = Sample(folder)
        for name, value in _plain(generator, raw):
            sample.tensors[name], sample.values[name] = value, value.astype(np.float32)
        for layer in range(LAYERS):
            for linear, (out, columns) in _linears(raw, layer):
                name = f"model.layers.{layer}.{linear}"
                tensors, value = quantize(generator, name, out, columns)
                sample.tensors |= tensors
                sample.values[f"{name}.weight"] = value
        if change:
            change(raw, sample.tensors)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(raw))
        save_file(sample.tensors, folder / "model.safetensors")
        return sample

    return write
