"""Checks a finished engine folder: every rank's file, the version, the mapping, and the flags in effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardyard.builder.targets.gpu_request import GpuRequest
from shardyard.builder.targets.trtllm_overrides import FlagInEffect, flags_in_effect
from shardyard.errors import ArtifactError, ToolchainError

__all__ = ["COLUMNS", "check_engine"]

COLUMNS = ("flag", "asked", "in effect", "why they differ")
_AGAIN = "run shardyard build again; if it happens again, the image is not the one that it says it is"
_DEGREES = ("world_size", "tp_size", "pp_size", "cp_size")


def check_engine(request: GpuRequest, folder: Path) -> list[FlagInEffect]:
    """Check what trtllm-build left in ``folder`` and return every flag that was asked for, with its value in effect.

    Raises:
        ArtifactError: config.json or an engine is missing or empty, there is one too many, or it is for another grid.
        ToolchainError: it was made by another version of TensorRT-LLM than the pin's.
    """
    config = _read_config(folder / "config.json")
    wanted = {f"rank{rank}.engine" for rank in range(request.ranks)}
    found = {path.name for path in folder.glob("rank*.engine") if path.stat().st_size}
    if found != wanted:
        raise ArtifactError(
            f"{folder} does not hold one engine per rank",
            why=f"missing or empty: {', '.join(sorted(wanted - found)) or 'none'}; surplus: "
            f"{', '.join(sorted(found - wanted)) or 'none'}",
            fix=_AGAIN,
        )
    if config["version"] != request.toolchain.tensorrt_llm:
        raise ToolchainError(
            f"{folder} was made by TensorRT-LLM {config['version']}, not by {request.toolchain.tensorrt_llm}",
            why="an engine runs with the version that made it alone",
            fix=f"build with {request.toolchain.image}",
        )
    asked = {name: request.model.config["mapping"].get(name) for name in _DEGREES}
    made = {name: config["pretrained_config"].get("mapping", {}).get(name) for name in _DEGREES}
    if made != asked:
        raise ArtifactError(f"{folder} is for another grid", why=f"asked: {asked}; made: {made}", fix=_AGAIN)
    return flags_in_effect(request.flags, config, request.model, request.machine.gpu.sm)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sections = {name: config[name] for name in ("version", "pretrained_config", "build_config")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read", why=f"{type(error).__name__}: {error}", fix=_AGAIN) from None
    if not all(isinstance(sections[name], dict) for name in ("pretrained_config", "build_config")):
        raise ArtifactError(f"{path} has no pretrained_config and build_config", fix=_AGAIN)
    return config
