"""What can be seen before anything starts: the engine against this machine, memory, shared memory, open files."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import psutil

from shardyard.console import human_bytes
from shardyard.errors import LaunchError
from shardyard.runtime.engine_config import DRAFT, EngineConfig, check_machine, rank_engine, read_engine_config
from shardyard.triton.clock import check_clock
from shardyard.triton.guard import SHM

__all__ = ["SHM_BASE", "check_connections", "check_open_files", "check_shared_memory", "preflight"]

#: Bytes of shared memory that Triton's models and one rank's windows take at the start; they grow with what is sent.
SHM_BASE, SHM_PER_RANK = 24 << 20, 8 << 20

#: Descriptors that a launch wants: a socket for each client, pipes and libraries of each process.
OPEN_FILES, FEWEST_OPEN_FILES = 65536, 1024

#: Of the front: those of a client's connection, and of everything else.
_PER_CONNECTION, _OTHER_FILES = 2, 200

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.1}


def preflight(engine: Path | None, files: Sequence[str]) -> None:
    """Check the machine for the ranks that read ``files``; raise the limit of open files as far as this user may.

    Raises:
        ArtifactError: the engine's configuration is broken.
        ToolchainError: the engine was built for another machine or OpenVINO.
        LaunchError: too little memory, shared memory or open files; a clock that is wrong.
    """
    check_open_files()
    check_shared_memory(SHM_BASE + len(files) * SHM_PER_RANK)
    if engine:
        check_clock(engine)
        config = read_engine_config(engine)
        check_machine(config, engine)
        _check_memory(engine, config, files)


def _check_memory(engine: Path, config: EngineConfig, files: Sequence[str]) -> None:
    # Ranks that read the same file share its memory.
    weights = sum((engine / name).stat().st_size for name in set(files))
    cache = cache_bytes(engine, config) * len(files) / config.ranks
    if config.cpu.speculative == "draft_model" and rank_engine(0) in files:
        draft = engine / DRAFT
        weights += (draft / rank_engine(0)).stat().st_size
        cache += cache_bytes(draft, read_engine_config(draft))
    free = psutil.virtual_memory().available
    if weights + cache > free:
        raise LaunchError(
            f"the engine needs {human_bytes(weights + cache)} of memory and {human_bytes(free)} are available",
            why=f"for {len(files)} rank(s): weights {human_bytes(weights)}, key/value cache {human_bytes(cache)}",
            fix="end other programs, or build with a smaller engine.kv_cache_tokens or with quantization=w8a16",
        )


def cache_bytes(engine: Path, config: EngineConfig) -> float:
    """Return what the key/value cache of all ranks takes once every block of it has been used."""
    model = json.loads((engine / "config.json").read_text(encoding="utf-8"))["pretrained_config"]
    heads = max(config.kv_heads, config.tp)  # Fewer heads than ranks are repeated.
    numbers = 2 * config.layers * heads * model["head_size"] * config.cpu.kv_cache_tokens
    return float(numbers * _BYTES[config.cpu.kv_cache])


def check_shared_memory(needed: int) -> None:
    """Check that so many bytes of shared memory are free.

    Raises:
        LaunchError: they are not.
    """
    found = os.statvfs(SHM)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise LaunchError(
            f"{SHM} has {human_bytes(free)} free and the launch takes at least {human_bytes(needed)}",
            why="Triton's models and the ranks exchange data through it",
            fix="start the container with --shm-size=1g, or remove what others have left there",
        )


def check_open_files() -> None:
    """Raise the limit of open files as far as this user may.

    Raises:
        LaunchError: that is too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FEWEST_OPEN_FILES:
        raise LaunchError(
            f"this user may open {wanted} files",
            why=f"every client takes a descriptor; fewer than {FEWEST_OPEN_FILES} end in refused connections",
            fix="raise the hard limit: ulimit -Hn 65536 as root, or docker run --ulimit nofile=65536",
        )


def check_connections(most: int) -> None:
    """Check that the front may open what so many connections take; ``check_open_files`` has raised the limit.

    Raises:
        LaunchError: it may not.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _PER_CONNECTION * most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        fits = (soft - _OTHER_FILES) // _PER_CONNECTION
        raise LaunchError(
            f"this user may open {soft} files, and {most} connections take {needed}",
            why="the front has a descriptor for each client and one to Triton",
            fix=f"set serve.max_connections to {fits} at most, or raise the limit: ulimit -Hn {OPEN_FILES} as root",
        )
