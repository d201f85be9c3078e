"""Rank files that another converter made: what their config.json says of degrees, and where it may differ from ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardyard.builder.source.checkpoint import read_json
from shardyard.errors import CheckpointError
from shardyard.spec import ParallelSpec

__all__ = ["config_faults", "read_degrees"]

#: What says how a world is started, or follows from other keys.
_LAUNCH = frozenset({"mapping.gpus_per_node", "mapping.world_size", "mapping.moe_tp_size"})
#: What a key that is left out stands for, where that is not None or False.
_LEFT_OUT: Mapping[str, object] = {
    "mapping.cp_size": 1,
    "mapping.moe_ep_size": 1,
    "mapping.moe_cluster_size": 1,
    "mapping.attn_tp_size": -1,
    "mapping.attn_cp_size": -1,
    "quantization.group_size": 128,
    "quantization.smoothquant_val": 0.5,
}


def read_degrees(checkpoint: Path) -> ParallelSpec:
    """Return the degrees that the config.json of rank files names.

    Raises:
        CheckpointError: it is missing or broken, or names none.
    """
    config = read_json(checkpoint / "config.json")
    try:
        mapping = config["mapping"]
        return ParallelSpec(
            tp=mapping["tp_size"],
            pp=mapping["pp_size"],
            cp=mapping.get("cp_size", 1),
            moe_ep=max(1, mapping.get("moe_ep_size", 1)),
            use_parallel_embedding=config.get("use_parallel_embedding", False),
            embedding_sharding_dim=config.get("embedding_sharding_dim", 0),
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(
            f"{checkpoint / 'config.json'} names no degrees",
            why=f"mapping: {str(error).splitlines()[0]}",
            fix="give a folder of rank files in TensorRT-LLM's unified layout",
        ) from None


def config_faults(written: Mapping[str, Any], wanted: Mapping[str, Any], *, own: bool) -> Iterator[str]:
    """Yield what a config.json says otherwise than the source asks for.

    ``own``: convert made it, so it is equal throughout. Other converters write further keys, and may leave out those
    that say nothing.
    """
    if own:
        keys = sorted(written.keys() | wanted.keys())
        yield from (
            _fault(key, written.get(key), wanted.get(key)) for key in keys if written.get(key) != wanted.get(key)
        )
        return
    found, asked = _flat(written), _flat(wanted)
    for key in sorted(asked.keys() - _LAUNCH):
        stands_for = (None, False, _LEFT_OUT[key]) if key in _LEFT_OUT else (None, False)
        fine = found[key] == asked[key] if key in found else asked[key] in stands_for
        if not fine:
            yield _fault(key, found.get(key), asked[key])


def _fault(key: str, found: object, asked: object) -> str:
    return f"config.json: {key}={found!r}, the source asks for {asked!r}"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with its sections' keys as ``section.key``; rotary_scaling stays whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "rotary_scaling":
            flat.update({f"{key}.{inner}": each for inner, each in value.items()})
        else:
            flat[key] = value
    return flat
