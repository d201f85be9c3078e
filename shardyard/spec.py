"""The pipeline file as types.

One YAML file describes a whole run. Every verb reads the same file; ``--set a.b=value`` overrides a field. An unknown
key is an error that names the nearest known one; a value out of range or an impossible combination is an error that
says what would be possible.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardyard.engine_spec import EngineSpec
from shardyard.perf_spec import PerfSpec
from shardyard.section import Positive, Section
from shardyard.serve_spec import ServeSpec

__all__ = ["ModelSpec", "ParallelSpec", "Pipeline"]


class ModelSpec(Section):
    """Where the weights and the tokenizer come from."""

    checkpoint: Annotated[
        str, Field(min_length=1, description="folder with config.json and *.safetensors, or hf://org/name@revision")
    ]
    tokenizer: Annotated[str | None, Field(description="folder with tokenizer.json; default: the checkpoint's")] = None


class ParallelSpec(Section):
    """Parallel degrees; the world has tp * pp * cp ranks, tensor parallel fastest."""

    tp: Annotated[Positive, Field(description="tensor parallel degree")] = 1
    pp: Annotated[Positive, Field(description="pipeline parallel degree")] = 1
    cp: Annotated[Positive, Field(description="context parallel degree; cp peers read the same rank file")] = 1
    moe_ep: Annotated[Positive, Field(description="expert parallel degree; moe_tp = tp / moe_ep")] = 1
    use_parallel_embedding: Annotated[bool, Field(description="shard the embedding table over tp")] = False
    embedding_sharding_dim: Annotated[Literal[0, 1], Field(description="0: vocabulary, 1: hidden size")] = 0

    @property
    def world_size(self) -> int:
        """Number of ranks, one process each."""
        return self.tp * self.pp * self.cp

    @property
    def moe_tp(self) -> int:
        """Tensor parallel degree inside each expert."""
        return self.tp // self.moe_ep

    @model_validator(mode="after")
    def _degrees(self) -> ParallelSpec:
        if self.tp % self.moe_ep:
            possible = [d for d in range(1, self.tp + 1) if self.tp % d == 0]
            raise ValueError(f"moe_ep={self.moe_ep} does not divide tp={self.tp}; possible: {possible}")
        return self


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Pipeline(Section):
    """The whole file."""

    name: Annotated[str, Field(description="names the work folder")]
    model: ModelSpec
    parallel: ParallelSpec = ParallelSpec()
    quantization: Annotated[
        Literal["none", "w8a16", "w4a16", "dequantized"],
        Field(
            description="w8a16: int8 weights; w4a16: int4 weights, the CPU engine's in groups; none: as the checkpoint "
            "has them, also quantized ones; dequantized: plain weights of a quantized checkpoint"
        ),
    ] = "none"
    engine: EngineSpec = EngineSpec()
    serve: ServeSpec = ServeSpec()
    perf: PerfSpec = PerfSpec()

    @model_validator(mode="after")
    def _checks(self) -> Pipeline:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be a file name: letters, digits, '.', '_' and '-'")
        if self.engine.target != "cpu" and self.engine.lora.max_rank:
            raise ValueError("engine.lora is the CPU engine's; possible for GPU targets: engine.build_flags")
        if self.serve.lora_dir and not self.engine.lora.max_rank:
            raise ValueError("serve.lora_dir needs engine.lora.max_rank; possible: above 0")
        return self

    def checkpoint_path(self) -> Path:
        """Return the source checkpoint's folder."""
        return Path(self.model.checkpoint).expanduser()

    def tokenizer_path(self) -> Path:
        """Return the tokenizer's folder: the checkpoint's unless the file names another."""
        return Path(self.model.tokenizer).expanduser() if self.model.tokenizer else self.checkpoint_path()
