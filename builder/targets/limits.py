"""What fits into a GPU: weights, activations and key/value cache of each rank, from shapes alone.

The weights and the bytes of a cached token are exact. The activations are an estimate of the largest layer's live
tensors; the reserve is what CUDA's context, NCCL's buffers and cuBLAS's workspaces take at most as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.layout.ranks import pad, rank_index, stage_layers
from shardyard.builder.targets.gpu_model import GpuModel
from shardyard.console import human_bytes
from shardyard.engine_spec import EngineSpec
from shardyard.machines import Machine
from shardyard.spec import ParallelSpec

__all__ = ["FORMULA", "Budget", "budget_of_rank", "budgets", "tightest"]

#: CUDA context, NCCL buffers and workspaces, in bytes.
RESERVE = 2 << 30
#: Bytes of a cached element, by TensorRT-LLM's name of the cache's quantization; NVFP4 has a scale per 16 elements.
_KV_BYTES: dict[str, float] = {"FP8": 1.0, "INT8": 1.0, "NVFP4": 0.5 + 1 / 16}

FORMULA = (
    "activations = max_num_tokens × (3 × hidden + max(q + 2 × kv + q, 3 × inner)) × bytes, all per rank",
    "logits = max_batch_size × vocabulary / tp × 4 bytes, on the last stage",
    "free = memory − reserve − weights − activations − logits",
    "KV bytes of a token = 2 × layers on the rank × KV heads on the rank × head size × bytes",
    "KV tokens = kv_memory_fraction × free / KV bytes of a token, in whole blocks",
)


@dataclass(frozen=True)
class Budget:
    """One rank's memory, in bytes; ``kv_tokens`` is how many tokens its share of the cache can hold."""

    rank: int
    memory: int
    weights: int
    activations: int
    logits: int
    kv_token: int
    kv_tokens: int
    fraction: float

    @property
    def free(self) -> int:
        """Bytes left for the cache; negative when the rest does not fit."""
        return self.memory - RESERVE - self.weights - self.activations - self.logits

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The calculation, line by line."""
        return [
            ("memory", human_bytes(self.memory)),
            ("− reserve", human_bytes(RESERVE)),
            ("− weights", human_bytes(self.weights)),
            ("− activations", human_bytes(self.activations)),
            ("− logits", human_bytes(self.logits)),
            ("= free", human_bytes(self.free)),
            ("× kv_memory_fraction", f"{self.fraction:g}"),
            ("÷ KV bytes of a token", human_bytes(self.kv_token)),
            ("= KV tokens", str(self.kv_tokens)),
        ]


def budgets(
    model: GpuModel, parallel: ParallelSpec, engine: EngineSpec, machine: Machine, block: int = 32
) -> list[Budget]:
    """Return every rank's budget; ``block`` is tokens_per_block."""
    return [budget_of_rank(rank, model, parallel, engine, machine, block) for rank in range(parallel.world_size)]


def tightest(all_budgets: list[Budget]) -> Budget:
    """Return the budget of the rank that decides for the world."""
    return min(all_budgets, key=lambda budget: (budget.kv_tokens, budget.free))


def budget_of_rank(
    rank: int, model: GpuModel, parallel: ParallelSpec, engine: EngineSpec, machine: Machine, block: int
) -> Budget:
    """Return the budget of one rank, by FORMULA."""
    config, index = model.config, rank_index(rank, parallel)
    layers = len(stage_layers(config["num_hidden_layers"], parallel.pp)[index.pp])
    item = BY_NAME[config["dtype"]].itemsize
    kv_heads = max(config["num_key_value_heads"], parallel.tp) // parallel.tp
    head = config["head_size"]
    q, kv = config["num_attention_heads"] * head // parallel.tp, kv_heads * head
    width = 3 * config["hidden_size"] + max(2 * q + 2 * kv, 3 * _inner(config, parallel))
    last = index.pp == parallel.pp - 1
    vocabulary = pad(config["vocab_size"], parallel.tp) // parallel.tp
    kv_token = int(2 * layers * kv_heads * head * _KV_BYTES.get(str(model.kv_algo), float(item)))
    draft = Budget(
        rank=rank,
        memory=machine.gpu.memory_bytes,
        weights=model.weights[rank],
        activations=engine.max_num_tokens * width * item,
        logits=engine.max_batch_size * vocabulary * 4 if last else 0,
        kv_token=kv_token,
        kv_tokens=0,
        fraction=engine.kv_memory_fraction,
    )
    tokens = max(0, int(draft.fraction * draft.free / kv_token)) // block * block * parallel.cp
    return Budget(**{**draft.__dict__, "kv_tokens": tokens})


def _inner(config: Mapping[str, Any], parallel: ParallelSpec) -> int:
    """Return the widest feed-forward layer of a rank, in elements per token; a token asks for top_k experts."""
    dense = int(config["intermediate_size"]) // parallel.tp
    moe = config.get("moe") or {}
    if not moe.get("num_experts"):
        return dense
    expert = int(config.get("moe_intermediate_size") or config["intermediate_size"]) // parallel.moe_tp
    shared = int(config.get("moe_shared_expert_intermediate_size") or 0) // parallel.tp
    return max(dense, int(moe.get("top_k") or 1) * expert + shared)
