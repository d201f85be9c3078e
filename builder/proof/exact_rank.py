"""This process's rank of a checkpoint as an exact network: float32 throughout, straight from the rank files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shardyard.builder.targets.cpu import rank_arrays
from shardyard.runtime.attention import BLOCK_TOKENS
from shardyard.runtime.network import WeightType
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

__all__ = ["exact_rank"]


def exact_rank(checkpoint: Path, weights: WeightType, longest: int) -> RankModel:
    """Return the rank's model with room for ``longest`` tokens. Every rank of the MPI world calls this."""
    mapping = json.loads((checkpoint / "config.json").read_text())["mapping"]
    world = World(mapping["tp_size"], mapping["pp_size"])
    spec, arrays = rank_arrays(checkpoint, world.rank, weights=weights)
    threads = max(1, (os.cpu_count() or 1) // world.size)
    return RankModel(spec, arrays, world, RankSettings.exact(-(-longest // BLOCK_TOKENS), threads))
