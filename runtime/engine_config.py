"""The engine folder's config.json: what the engine was built for, and whether this machine is that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shardyard import __version__
from shardyard.errors import ArtifactError, ToolchainError
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.native.products import Level
from shardyard.runtime.network import ComputeType, KvType, WeightType
from shardyard.toolchain import cpu_features, package_version

__all__ = ["DRAFT", "CpuTarget", "EngineConfig", "check_machine", "file_of", "rank_engine", "read_engine_config"]

#: Where in the engine's folder the model that drafts lies, an engine of one rank.
DRAFT = "draft"

_AGAIN = "build the engine again: shardyard build"

Speculative = Literal["none", "prompt_lookup", "draft_model"]


@dataclass(frozen=True)
class CpuTarget:
    """The ``shardyard`` section: how the CPU engine computes, and the machine and OpenVINO that it was built for.

    ``weights_from`` says in words what the weights are and where they come from; ``matmul`` who multiplies them:
    OpenVINO's plugin, or the engine's own products at a level of CPU. ``lora_adapters`` of up to
    ``lora_max_rank`` have room; 0: the engine takes none. ``speculative``: where drafts come from.
    """

    weights: WeightType
    compute: ComputeType
    kv_cache: KvType
    kv_cache_tokens: int
    threads: int | None
    openvino: str
    cpu_features: list[str]
    target: str = "cpu"
    weights_from: str = ""
    matmul: Literal["plugin"] | Level = "plugin"
    lora_max_rank: int = 0
    lora_adapters: int = 0
    speculative: Speculative = "none"


@dataclass(frozen=True)
class EngineConfig:
    """What the runtime reads from config.json. ``digest`` is the SHA-256 of the file; ``layers``: of all stages."""

    tp: int
    pp: int
    cp: int
    vocab: int
    layers: int
    kv_heads: int
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    max_beam_width: int
    cpu: CpuTarget
    digest: str

    @property
    def ranks(self) -> int:
        """Ranks of the world."""
        return self.tp * self.pp * self.cp

    @property
    def kv_blocks(self) -> int:
        """Blocks that the key/value cache has."""
        return -(-self.cpu.kv_cache_tokens // BLOCK_TOKENS)


def file_of(rank: int, tp: int, cp: int) -> int:
    """Return the number of the file that a rank of the world reads; context-parallel peers read the same."""
    return rank // (tp * cp) * tp + rank % tp


def rank_engine(rank: int) -> str:
    """Return the name of a rank's engine file."""
    return f"rank{rank}.engine"


def engine_json(pretrained: Mapping[str, Any], build: Mapping[str, int], cpu: CpuTarget) -> str:
    """Return the content of config.json, laid out as TensorRT-LLM's with a section of our own."""
    content = {
        "version": __version__,
        "pretrained_config": pretrained,
        "build_config": {"max_input_len": build["max_seq_len"] - 1, **build},
        "shardyard": asdict(cpu),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_engine_config(folder: Path) -> EngineConfig:
    """Read an engine folder's config.json.

    Raises:
        ArtifactError: it is missing, broken, or not that of a CPU engine.
    """
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        mapping, build, section = raw["pretrained_config"]["mapping"], raw["build_config"], raw["shardyard"]
        known = {field.name for field in fields(CpuTarget)}
        if set(section) != known:
            raise ValueError(f"the shardyard section has other fields than {sorted(known)}")
        return EngineConfig(
            tp=mapping["tp_size"],
            pp=mapping["pp_size"],
            cp=mapping["cp_size"],
            vocab=raw["pretrained_config"]["vocab_size"],
            layers=raw["pretrained_config"]["num_hidden_layers"],
            kv_heads=raw["pretrained_config"]["num_key_value_heads"],
            max_batch_size=build["max_batch_size"],
            max_seq_len=build["max_seq_len"],
            max_num_tokens=build["max_num_tokens"],
            max_beam_width=build["max_beam_width"],
            cpu=CpuTarget(**section),
            digest=hashlib.sha256(text.encode()).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{path} is not the configuration of a CPU engine", why=why, fix=_AGAIN) from None


def check_machine(config: EngineConfig, folder: Path) -> None:
    """Check that this machine and its OpenVINO are those that the engine was built for.

    Raises:
        ToolchainError: they are not; it says what differs.
    """
    version = package_version("openvino") or "absent"
    if version != config.cpu.openvino:
        raise ToolchainError(
            f"{folder} was built with OpenVINO {config.cpu.openvino}; {version} is installed",
            why="the network's paged attention differs between versions",
            fix=_AGAIN,
        )
    here, built = set(cpu_features()), set(config.cpu.cpu_features)
    if here != built:
        parts = [f"missing here: {', '.join(sorted(built - here))}"] if built - here else []
        parts += [f"only here: {', '.join(sorted(here - built))}"] if here - built else []
        raise ToolchainError(f"{folder} was built for another CPU", why="; ".join(parts), fix=_AGAIN)
