"""What an engine for GPUs will be made from: the unified config.json, and the bytes that each rank's engine will hold.

It comes from converted rank files, or, before there are any, from the source's config.json and index alone.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.builder.dtypes import STORED
from shardyard.builder.layout.ranks import rank_index
from shardyard.builder.quantization.rank_plan import pipeline_plan
from shardyard.builder.source.checkpoint import read_json
from shardyard.builder.source.outline import open_headers
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.engine_spec import EngineSpec
from shardyard.spec import Pipeline

__all__ = ["GpuModel", "cache_algo", "model_of_checkpoint", "model_of_source"]

#: Bytes of a quantized weight in the engine, with the scales of groups of 128 where the algorithm has groups.
_QUANTIZED: dict[str, float] = {
    "W8A16": 1.0,
    "W4A16": 0.5,
    "W8A16_GPTQ": 1.0 + 4 / 128,
    "W4A16_GPTQ": 0.5 + 4 / 128,
    "W4A16_AWQ": 0.5 + 2 / 128,
    "W4A8_AWQ": 0.5 + 2 / 128,
    "W8A8_SQ_PER_CHANNEL": 1.0,
    "W8A8_SQ_PER_TENSOR_PLUGIN": 1.0,
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": 1.0,
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": 1.0,
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": 1.0,
    "FP8": 1.0,
    "FP8_PER_CHANNEL_PER_TOKEN": 1.0,
    "FP8_BLOCK_SCALES": 1.0,
    "NVFP4": 0.5 + 1 / 16,
}
#: The matrices that TensorRT-LLM quantizes, by name; the router, norms, embeddings and the head stay as they are.
_MATRICES = ("*.qkv.weight", "*.dense.weight", "*.fc.weight", "*.gate.weight", "*.proj.weight")


@dataclass(frozen=True)
class GpuModel:
    """A unified config.json and, per rank of the world, the bytes of its weights in the engine."""

    config: dict[str, Any]
    weights: tuple[int, ...]

    @property
    def quant_algo(self) -> str | None:
        """TensorRT-LLM's name of the weights' quantization."""
        return (self.config.get("quantization") or {}).get("quant_algo")

    @property
    def kv_algo(self) -> str | None:
        """TensorRT-LLM's name of the key/value cache's quantization."""
        return (self.config.get("quantization") or {}).get("kv_cache_quant_algo")

    @property
    def title(self) -> str:
        """One line about the model and the grid."""
        mapping, config = self.config["mapping"], self.config
        grid = f"tp={mapping['tp_size']} pp={mapping['pp_size']} cp={mapping['cp_size']}"
        weights = self.quant_algo or config["dtype"]
        return f"{config['architecture']}, {config['num_hidden_layers']} layers, {weights}, {grid}"


#: TensorRT-LLM's name for the narrow cache types of the pipeline file; every other is the model's own type.
_CACHES = {"int8": "INT8", "fp8": "FP8"}


def cache_algo(engine: EngineSpec) -> str | None:
    """Return TensorRT-LLM's name of the cache type that engine.kv_cache asks for."""
    return _CACHES.get(engine.kv_cache)


def model_of_source(pipeline: Pipeline) -> GpuModel:
    """Describe the model from the source's config.json, and check its index where there is one; no weights are read.

    Raises:
        CheckpointError: the config is missing or not supported, the index names other tensors, or the degrees cannot
            cut this model.
    """
    plan = pipeline_plan(open_headers(pipeline.checkpoint_path()), pipeline)
    cutting = plan.cutting
    sizes = [
        _engine_bytes(
            {name: (math.prod(shape), _itemsize(cutting.dtype_of(name))) for name, shape in file.items()}, plan.config
        )
        for file in cutting.files
    ]
    ranks = range(pipeline.parallel.world_size)
    return GpuModel(plan.config, tuple(sizes[rank_index(rank, pipeline.parallel).file] for rank in ranks))


def model_of_checkpoint(pipeline: Pipeline, checkpoint: Path) -> GpuModel:
    """Describe the model from converted rank files.

    Raises:
        CheckpointError: config.json or a rank file is missing or broken.
    """
    config = read_json(checkpoint / "config.json")
    sizes = []
    for number in range(pipeline.parallel.tp * pipeline.parallel.pp):
        entries = SafetensorsFile(checkpoint / f"rank{number}.safetensors").entries.values()
        tensors = {entry.name: (math.prod(entry.shape), entry.dtype.itemsize) for entry in entries}
        sizes.append(_engine_bytes(tensors, config))
    ranks = range(pipeline.parallel.world_size)
    return GpuModel(config, tuple(sizes[rank_index(rank, pipeline.parallel).file] for rank in ranks))


#: What stands beside a weight that is quantized in the rank file already.
_SCALES = ("weights_scaling_factor", "per_channel_scale")


def _engine_bytes(tensors: Mapping[str, tuple[int, int]], config: Mapping[str, Any]) -> int:
    """Add up name → (elements, bytes each); plain matrices shrink to what the build makes of them."""
    quantization = config.get("quantization") or {}
    each = _QUANTIZED.get(str(quantization.get("quant_algo")))
    excluded = quantization.get("exclude_modules") or []
    total = 0.0
    for name, (elements, item) in tensors.items():
        module = name.removesuffix(".weight")
        matrix = any(fnmatch.fnmatchcase(name, pattern) for pattern in _MATRICES)
        made = item == 1 or any(f"{module}.{scale}" in tensors for scale in _SCALES)
        kept = name.endswith("shared_expert_gate.weight") or any(fnmatch.fnmatchcase(module, glob) for glob in excluded)
        total += elements * (each if each and matrix and not made and not kept else item)
    return int(total)


def _itemsize(dtype: str) -> int:
    return STORED[dtype].itemsize
