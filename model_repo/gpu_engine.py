"""What a TensorRT-LLM engine's config.json says, as far as its Triton model has to agree with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shardyard.errors import ArtifactError
from shardyard.model_repo.tensor import Datatype

__all__ = ["GpuEngine", "read_gpu_engine"]

_LOGITS = {"float32": "FP32", "float16": "FP16"}
_TABLES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}

#: TensorRT-LLM's SpeculativeDecodingMode: config.json has its number, older releases its name.
_MODES = {1: "none", 2: "draft_tokens_external", 4: "medusa", 8: "lookahead_decoding", 16: "explicit_draft_tokens"}
_MODES |= {32: "eagle"}


@dataclass(frozen=True)
class GpuEngine:
    """Limits and features of a finished engine. ``max_draft_len``: draft tokens that one step may verify."""

    version: str
    world_size: int
    vocab_size: int
    logits: Datatype
    prompt_table: Datatype
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    max_beam_width: int
    max_draft_len: int
    paged_kv_cache: bool
    paged_context_fmha: bool
    packed_input: bool
    int8_kv_cache: bool
    speculative: str

    def longest_prompt(self, *, chunked: bool) -> int:
        """Return the most tokens of a prompt: unless it is cut into chunks, all of it is one step."""
        return self.max_seq_len - 1 if chunked else min(self.max_seq_len - 1, self.max_num_tokens)


def read_gpu_engine(folder: Path) -> GpuEngine:
    """Read config.json and check that every rank's engine lies beside it.

    Raises:
        ArtifactError: it is no engine's, or an engine is missing or empty, or the logits have another type than
            Triton's backend takes.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        engine = _engine(config["version"], config["pretrained_config"], config["build_config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{path} is not a GPU engine's configuration", why, "run: shardyard build") from None
    logits = config["pretrained_config"].get("logits_dtype", "float32")
    if logits not in _LOGITS:
        raise ArtifactError(
            f"the engine in {folder} makes logits of type {logits}",
            why="Triton's backend takes float32 and float16 alone",
            fix="build with engine.build_flags={logits_dtype: float32}",
        )
    files = [folder / f"rank{rank}.engine" for rank in range(engine.world_size)]
    missing = [file.name for file in files if not (file.is_file() and file.stat().st_size)]
    if missing:
        raise ArtifactError(
            f"the engine in {folder} is not whole",
            why=f"it has {engine.world_size} ranks; missing or empty: {', '.join(missing)}",
            fix="run: shardyard build",
        )
    return engine


def _engine(version: str, model: dict[str, Any], build: dict[str, Any]) -> GpuEngine:
    plugins = build["plugin_config"]
    return GpuEngine(
        version=str(version),
        world_size=int(model["mapping"]["world_size"]),
        vocab_size=int(model["vocab_size"]),
        logits=cast("Datatype", _LOGITS.get(model.get("logits_dtype", "float32"), "FP32")),
        prompt_table=cast("Datatype", _TABLES.get(model["dtype"], "FP16")),
        max_batch_size=int(build["max_batch_size"]),
        max_seq_len=int(build["max_seq_len"]),
        max_num_tokens=int(build["max_num_tokens"]),
        max_beam_width=int(build.get("max_beam_width", 1)),
        max_draft_len=int(build.get("max_draft_len", 0)),
        paged_kv_cache=str(build.get("kv_cache_type", "PAGED")).lower() == "paged",
        paged_context_fmha=bool(plugins["use_paged_context_fmha"]),
        packed_input=bool(plugins.get("remove_input_padding", True)),
        int8_kv_cache=(model.get("quantization") or {}).get("kv_cache_quant_algo") == "INT8",
        speculative=_mode(build.get("speculative_decoding_mode")),
    )


def _mode(value: object) -> str:
    if isinstance(value, int):
        return _MODES.get(value, str(value))
    return str(value).rpartition(".")[2].lower()
