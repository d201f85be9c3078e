"""What is launched: how many ranks, and the program of those that are not Triton."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from shardyard.errors import ArtifactError
from shardyard.model_repo.allowed_paths import allowed_path

__all__ = ["ENGINE_MODEL", "World", "read_world"]

#: The model that holds the engine, and its parameter that names the engine's folder.
ENGINE_MODEL = "tensorrt_llm"
ENGINE_PARAMETER = "gpt_model_path"


@dataclass(frozen=True)
class World:
    """``ranks`` processes: rank 0 is Triton, the others run ``worker``. ``engine``: the folder of their files."""

    ranks: int
    worker: tuple[str, ...] = ()
    engine: Path | None = None


def read_world(model_repo: Path) -> World:
    """Return the world that a model repository's engine needs.

    Raises:
        ArtifactError: the repository or the engine is unfinished, or one does not fit the other; or the engine lies
            where ``fill`` has not noted.
    """
    engine = _engine_folder(model_repo)
    config = engine / "config.json"
    try:
        mapping = json.loads(config.read_text(encoding="utf-8"))["pretrained_config"]["mapping"]
        ranks = int(mapping["world_size"])
        files = ranks // int(mapping.get("cp_size", 1))  # Context-parallel peers read the same.
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{config}: {type(error).__name__}: {error}"
        raise _unfinished(f"the engine in {engine} cannot be used", why) from None
    missing = [name for name in (f"rank{number}.engine" for number in range(files)) if not (engine / name).is_file()]
    if missing:
        raise _unfinished(f"the engine in {engine} is not whole", f"it has {ranks} ranks and no {missing[0]}")
    return World(ranks, worker_command(engine), engine)


def worker_command(engine: Path) -> tuple[str, ...]:
    """Return the command line of a rank that is not Triton; ``-m mpi4py`` ends the world when one rank raises."""
    return (sys.executable, "-m", "mpi4py", "-m", "shardyard.runtime.worker", "--engine", str(engine))


def _engine_folder(model_repo: Path) -> Path:
    path = model_repo / ENGINE_MODEL / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise _unfinished(f"{model_repo} is not a usable model repository", f"{path}: {error}") from None
    named = str(config.parameters[ENGINE_PARAMETER].string_value)
    if not named:
        raise _unfinished(f"{model_repo} names no engine", f"{path} has no parameter {ENGINE_PARAMETER}")
    return allowed_path(model_repo, ENGINE_MODEL, ENGINE_PARAMETER, named)


def _unfinished(what: str, why: str) -> ArtifactError:
    return ArtifactError(
        what, why=why, fix="make it anew: shardyard fill PIPELINE.yaml (and before it, shardyard build)"
    )
