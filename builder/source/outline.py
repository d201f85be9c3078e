"""A source whose weights are not there: its tensors follow from config.json and the family's table."""

from __future__ import annotations

import math
from pathlib import Path

from shardyard.builder.config.hf_config import HfConfig, parse_config
from shardyard.builder.dtypes import BY_NAME, code_of
from shardyard.builder.layout.placing import place_rules, source_shape
from shardyard.builder.source.checkpoint import INDEX, SINGLE, SourceCheckpoint, open_source, read_json
from shardyard.builder.source.safetensors_file import TensorEntry
from shardyard.errors import CheckpointError

__all__ = ["open_headers", "outline"]


def open_headers(folder: Path) -> SourceCheckpoint:
    """Open a checkpoint to plan with: from its files' headers; where there are no weights, from its table.

    Raises:
        CheckpointError: something is missing, broken, or of a kind that is not supported.
    """
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return open_source(folder) if has_weights or not (folder / "config.json").is_file() else outline(folder)


def outline(folder: Path) -> SourceCheckpoint:
    """Return a checkpoint with the tensors that its config.json asks for; where there is an index, it must name them.

    It has no files. Where config.json names no type, bfloat16 is assumed.

    Raises:
        CheckpointError: config.json is not supported, or the index belongs to another model.
    """
    path = folder / "config.json"
    raw = read_json(path)
    config = parse_config(raw, path)
    if raw.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder} holds no weights",
            why="they are quantized, and how each of them is stored is known from their headers alone",
            fix="download the weights too",
        )
    files = _files(folder, config)
    dtype = config.dtype or "bfloat16"
    code, element = code_of(BY_NAME[dtype]), BY_NAME[dtype].itemsize
    entries: dict[str, TensorEntry] = {}
    for item in place_rules(config, 1):
        for part in item.parts:
            if part.name not in entries:
                shape = source_shape(part, config)
                file = folder / files.get(part.name, SINGLE)
                entries[part.name] = TensorEntry(file, part.name, code, shape, 0, math.prod(shape) * element)
    names = tuple(sorted(set(files.values()))) or (SINGLE,)
    return SourceCheckpoint(folder, config, (), entries, ("config.json", *([INDEX] if files else []), *names))


def _files(folder: Path, config: HfConfig) -> dict[str, str]:
    """Return the file of each tensor, from the index; empty where there is none."""
    if not (folder / INDEX).is_file():
        return {}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map of tensor to file", fix="download the file again")
    for item in place_rules(config, 1):
        for part in item.parts:
            if part.name not in weight_map:
                raise CheckpointError(
                    f"{folder / INDEX} names no tensor {part.name}",
                    why=f"config.json is that of a {config.family.architecture} of {config.num_hidden_layers} layers",
                    fix="check that config.json belongs to this index",
                )
    return weight_map
