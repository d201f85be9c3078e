"""Whether a source holds exactly the tensors that its config.json asks for."""

from __future__ import annotations

import fnmatch

from shardyard.builder.config.hf_config import HfConfig
from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.layout.placing import place_rules, source_shape
from shardyard.builder.source.checkpoint import HEADS, SourceCheckpoint
from shardyard.builder.source.safetensors_file import TensorEntry
from shardyard.errors import CheckpointError

__all__ = ["check_tensors"]


def check_tensors(source: SourceCheckpoint) -> None:
    """Compare the headers with what the family's table expects, both ways.

    Raises:
        CheckpointError: a tensor that is missing, surplus, or of another shape or type than config.json says.
    """
    config = source.config
    if max(config.num_hidden_layers, config.num_experts) > len(source.entries):
        key = "num_hidden_layers" if config.num_hidden_layers > len(source.entries) else "num_experts"
        raise CheckpointError(
            f"{source.folder} holds {len(source.entries)} tensors",
            why=f"config.json says {key}={getattr(config, key)}, and each of them has several",
            fix="check that config.json belongs to these weights",
        )
    wanted = {part.name: source_shape(part, config) for item in place_rules(config, 1) for part in item.parts}
    for name, shape in wanted.items():
        _check_tensor(source, name, shape, source.entries.get(name))
    surplus = [name for name in source.entries if name not in wanted and not _ignored(name, source.config)]
    if surplus:
        raise CheckpointError(
            f"{source.entries[surplus[0]].path}: tensor {surplus[0]} has no place in {_title(source)}",
            why=f"{len(surplus)} tensor(s) would be left out, which would change what the model answers",
            fix="check that config.json belongs to these weights; adapters must be merged into them first",
        )


def _ignored(name: str, config: HfConfig) -> bool:
    # A head that no rule asks for is tied. It is the embedding, whatever the file holds: transformers loads it so.
    return name in HEADS or any(fnmatch.fnmatchcase(name, pattern) for pattern in config.family.ignored)


def _check_tensor(source: SourceCheckpoint, name: str, shape: tuple[int, ...], entry: TensorEntry | None) -> None:
    if entry is None:
        raise CheckpointError(
            f"{source.folder} holds no tensor {name}",
            why=f"{_title(source)} has one of shape {list(shape)}",
            fix="check that config.json belongs to these weights and that every file was downloaded",
        )
    if entry.shape != shape:
        raise CheckpointError(
            f"{entry.path}: tensor {name} has shape {list(entry.shape)}",
            why=f"config.json says {list(shape)}",
            fix="check that config.json belongs to these weights",
        )
    if entry.dtype not in BY_NAME.values():
        raise CheckpointError(
            f"{entry.path}: tensor {name} has element type {entry.code}",
            why=f"the sharder reads {', '.join(BY_NAME)}",
            fix="give the checkpoint as it was before it was quantized or converted",
        )


def _title(source: SourceCheckpoint) -> str:
    config = source.config
    return f"a {config.family.architecture} of {config.num_hidden_layers} layers"
