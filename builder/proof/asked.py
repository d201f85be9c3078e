"""The reference of what a conversion was asked for: rounding that was asked for is no error."""

from __future__ import annotations

from pathlib import Path

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.quantization.rank_file import kept_algo
from shardyard.builder.quantization.rank_plan import make_rank_plan
from shardyard.builder.reference import Reference
from shardyard.builder.source.checkpoint import SourceCheckpoint, read_json
from shardyard.spec import ParallelSpec

__all__ = ["reference_of"]


def reference_of(source: SourceCheckpoint, checkpoint: Path, parallel: ParallelSpec) -> Reference:
    """Return the reference of what the rank files in ``checkpoint`` should compute.

    Weights are rounded to the rank files' type; those that stay quantised are not, but FP8 ones that are joined share a
    scale.
    """
    config = read_json(checkpoint / "config.json")
    served = source.config.max_position_embeddings  # The rank files are run as for the longest sequences.
    dtype = str(config.get("dtype"))
    if kept_algo(config):
        return Reference(make_rank_plan(source, parallel, dtype).source, served=served)
    return Reference(source, dtype if dtype in BY_NAME else None, served)
