"""What becomes of rank files as an engine of the embedded engine, decided before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardyard.builder.targets.cpu import write_rank_engine
from shardyard.runtime.engine_config import CpuTarget, engine_json, rank_engine

__all__ = ["EnginePlan"]

#: What of a CpuTarget changes the engine's files; the rest is known from the tool chain, or says the same in words.
_SETTINGS = (
    "weights", "compute", "kv_cache", "kv_cache_tokens", "threads", "matmul", "lora_max_rank", "lora_adapters",
    "speculative",
)  # fmt: skip


@dataclass(frozen=True)
class EnginePlan:
    """The engine of the ``ranks`` rank files in ``checkpoint``, whose config.json is ``config``.

    ``stages``: each pipeline stage's layers.
    """

    checkpoint: Path
    ranks: int
    config: dict[str, Any]
    limits: dict[str, int]
    target: CpuTarget
    stages: list[range]

    @property
    def settings(self) -> dict[str, Any]:
        """What the engine's files depend on beside the rank files and the tool chain."""
        target = asdict(self.target)
        known = {"target": "cpu", **self.limits} | {name: target[name] for name in _SETTINGS}
        return known | {"stages": [len(layers) for layers in self.stages]}

    def write(self, folder: Path, advance: Callable[[int, str], None]) -> None:
        """Write the engine into a folder of an artifact; ``advance`` is told of each rank.

        Raises:
            CheckpointError: the rank files cannot be read or hold a network that the engine cannot run.
            OSError: the disk is full.
        """
        folder.mkdir(exist_ok=True)
        for rank in range(self.ranks):
            path = folder / rank_engine(rank)
            write_rank_engine(
                self.checkpoint,
                rank,
                path,
                weights=self.target.weights,
                max_positions=self.limits["max_seq_len"],
                packed=self.target.matmul != "plugin",
                stages=self.stages,
            )
            advance(1, path.name)
        text = engine_json(self.config, self.limits, self.target)
        (folder / "config.json").write_text(text, encoding="utf-8")
