"""Which layers each pipeline stage of a CPU engine computes.

Rank files place layers as TensorRT-LLM does, evenly. A step of a pipeline is as slow as its slowest stage, and the last
one has the head too, which can weigh as much as many layers. All rank files lie here when an engine is built, so it
takes the split whose slowest stage costs least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from shardyard.builder.layout.ranks import stage_layers
from shardyard.builder.quantization.rank_file import RankFile
from shardyard.runtime.names import EMBEDDING, POSITIONS

__all__ = ["balance", "balanced_stages"]

_LAYER = "transformer.layers."


def balanced_stages(checkpoint: Path, config: Mapping[str, Any]) -> list[range]:
    """Return each stage's layers. A matrix costs what is read of it for a token; tables that are looked up, nothing.

    Raises:
        CheckpointError: a rank file is missing or broken.
    """
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    moe = config.get("moe") or {}
    chosen = moe["top_k"] / moe["num_experts"] if moe.get("num_experts") else 1.0
    costs = [0.0] * config["num_hidden_layers"]
    head = 0.0
    for stage, layers in enumerate(stage_layers(len(costs), pp)):
        for name, entry in RankFile(checkpoint / f"rank{stage * tp}.safetensors", config).entries.items():
            if len(entry.shape) < 2 or name in (EMBEDDING, POSITIONS):
                continue
            size = 1.0
            for length in entry.shape:
                size *= length
            if name.startswith(_LAYER):
                local = int(name.removeprefix(_LAYER).partition(".")[0])
                costs[layers[local]] += size * (chosen if len(entry.shape) == 3 else 1.0)
            else:
                head += size
    return balance(costs, head, pp)


def balance(costs: Sequence[float], last: float, stages: int) -> list[range]:
    """Cut layers that cost so much into consecutive stages, none empty, so that the most costly costs least.

    ``last``: what the last stage costs besides. Of equal splits the one with the earliest cuts is taken.
    """
    sums = [0.0, *accumulate(costs)]
    count = len(costs)
    # For the layers from each on, in so many stages: the cost of the most costly, and where the first ends.
    best = [(sums[count] - sums[start] + last, count) for start in range(count)]
    tables = [best]
    for left in range(2, stages + 1):
        best = [
            min(
                ((max(sums[end] - sums[start], tables[-1][end][0]), end) for end in range(start + 1, count - left + 2)),
                default=(float("inf"), count),
            )
            for start in range(count)
        ]
        tables.append(best)
    cuts = [0]
    for table in reversed(tables):
        cuts.append(table[cuts[-1]][1])
    return [range(begin, end) for begin, end in pairwise(cuts)]
