"""Loads this process's rank of an engine: the same for the leader and the workers; and the leader's second model."""

from __future__ import annotations

import os
from pathlib import Path

from shardyard.errors import ArtifactError
from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.adapters.sites import find_sites
from shardyard.runtime.draft_model import DraftModel
from shardyard.runtime.engine_config import DRAFT, EngineConfig, check_machine, rank_engine, read_engine_config
from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.hosts import pin_to_cores
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import single_prompt
from shardyard.runtime.world import World

__all__ = ["load_draft_model", "load_rank"]


def load_rank(folder: Path, config: EngineConfig, world: World) -> RankModel:
    """Return the compiled and warmed-up model of ``world.rank``. All ranks of the world call it together.

    Raises:
        ToolchainError: the engine was built for another machine, or OpenVINO cannot compile it.
        ArtifactError: the engine file is broken, or the ranks were given different engines.
    """
    check_machine(config, folder)
    if not world.agree(config.digest):
        raise ArtifactError(
            f"{folder} is not the same on all ranks",
            why="their config.json differ",
            fix="give every host the same engine folder",
        )
    number, ranks = world.ranks_on_host()
    threads = config.cpu.threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    pin_to_cores(number, ranks, threads)
    return _load(folder, config, world, threads)


def load_draft_model(folder: Path, threads: int) -> DraftModel:
    """Return the model that drafts for the engine in ``folder``, ready to run in this process on so many threads.

    Raises:
        ToolchainError: it was built for another machine, or OpenVINO cannot compile it.
        ArtifactError: its files are broken.
    """
    config = read_engine_config(folder / DRAFT)
    check_machine(config, folder / DRAFT)
    return DraftModel(_load(folder / DRAFT, config, World(1, 1, apart=True), threads), config.kv_blocks)


def _load(folder: Path, config: EngineConfig, world: World, threads: int) -> RankModel:
    path = folder / rank_engine(world.file)
    spec, arrays = open_engine(path)
    if (spec.tp, spec.tp_rank, spec.pp, spec.stage) != (world.tp, world.tp_rank, world.pp, world.stage):
        raise ArtifactError(
            f"{path} is another rank's", why=f"it holds stage {spec.stage}, tp rank {spec.tp_rank}", fix="build again"
        )
    cpu = config.cpu
    products = None if cpu.matmul == "plugin" else cpu.matmul
    settings = RankSettings(cpu.compute, cpu.kv_cache, config.kv_blocks, threads, products=products)
    model = RankModel(spec, arrays, world, settings, adapters=_room_for_adapters(spec, config, world))
    # The plugin packs the weights when it first runs: better now than during the first request.
    for tokens in (1, 2):  # Single tokens may have a network of their own.
        model.run(single_prompt([0] * tokens, BLOCK_TOKENS))
    return model


def _room_for_adapters(spec: NetworkSpec, config: EngineConfig, world: World) -> AdapterPool | None:
    layers = world.gather(len(spec.layers))[world.tp_rank :: world.tp]
    if not config.cpu.lora_adapters:
        return None
    sites = find_sites(spec, config.kv_heads, sum(layers[: world.stage]))
    return AdapterPool(sites, config.cpu.lora_adapters, config.cpu.lora_max_rank)
