"""The seeded Hugging Face checkpoints that the reference layouts were made from, made again bit for bit.

Each tensor comes from PCG64's raw bit stream, which numpy keeps stable, seeded by the checkpoint's seed and the
tensor's name. The files are written by hand, since the reference's hashes cover them byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: Name → family, seed, type, and what differs from the family's configuration.
CHECKPOINTS: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "llama_bf16": ("llama", 11, "bfloat16", {}),
    "llama_tied": ("llama", 13, "bfloat16", {"tie_word_embeddings": True}),
    "llama_attn_bias": ("llama", 14, "float16", {"attention_bias": True}),
    "mistral_headdim": ("mistral", 22, "bfloat16", {"head_dim": 16}),
    "qwen2_bf16": ("qwen2", 31, "bfloat16", {}),
    "qwen3_bf16": ("qwen3", 41, "bfloat16", {}),
    "mixtral_bf16": ("mixtral", 51, "bfloat16", {}),
    "qwen2_moe_bf16": ("qwen2_moe", 61, "bfloat16", {}),
}

#: Checkpoints in more than one file, and their number of files.
SHARDS = {"mixtral_bf16": 2}

#: A vocabulary that no tp divides, layers that pp = 2 and 3 do not divide, fewer key/value heads than tp = 4.
_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "transformers_version": "4.53.1",
    "use_cache": True,
    "vocab_size": 131,
}
_QWEN: dict[str, Any] = {
    "max_window_layers": 28,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 8,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 512,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 8,
        "model_type": "mistral",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": None,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": None,
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    },
    "qwen2": {**_QWEN, "architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"] * 5},
    "qwen3": {
        **_QWEN,
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "layer_types": ["full_attention"] * 5,
        "model_type": "qwen3",
    },
    "qwen2_moe": {
        **_QWEN,
        "architectures": ["Qwen2MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 48,
        "norm_topk_prob": False,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "qkv_bias": True,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 96,
    },
}
_MLPS = {
    "mixtral": ("block_sparse_moe.", "w1", "w3", "w2"),
    "qwen2_moe": ("mlp.", "gate_proj", "up_proj", "down_proj"),
}


@pytest.fixture(scope="session")
def reference_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a checkpoint of CHECKPOINTS, once per session."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            _write(made[name], SHARDS.get(name, 1), *CHECKPOINTS[name])
        return made[name]

    return make


def _write(folder: Path, shards: int, family: str, seed: int, dtype: str, overrides: dict[str, Any]) -> None:
    config = {**_COMMON, **_FAMILIES[family], "torch_dtype": dtype, **overrides}
    (folder / "config.json").write_text(_json(config))
    tensors = [(name, shape, _values(seed, name, shape, dtype)) for name, shape in sorted(_shapes(config))]
    if shards == 1:
        _write_file(folder / "model.safetensors", tensors, dtype)
        return
    weight_map, each = {}, -(-len(tensors) // shards)
    for shard in range(shards):
        part = tensors[shard * each : (shard + 1) * each]
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        _write_file(file, part, dtype)
        weight_map.update({name: file.name for name, _, _ in part})
    size = sum(len(data) for _, _, data in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(_json(index))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _write_file(path: Path, tensors: list[tuple[str, tuple[int, ...], bytes]], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, shape, data in tensors:
        code = "F16" if dtype == "float16" else "BF16"
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocab, kind = config["hidden_size"], config["vocab_size"], config["model_type"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, pair = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part, count in (("q", query), ("k", pair), ("v", pair)):
            yield f"{prefix}self_attn.{part}_proj.weight", (count, hidden)
            if kind in ("qwen2", "qwen2_moe") or config.get("attention_bias"):
                yield f"{prefix}self_attn.{part}_proj.bias", (count,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, query)
        if config.get("attention_bias"):
            yield f"{prefix}self_attn.o_proj.bias", (hidden,)
        if kind == "qwen3":
            yield f"{prefix}self_attn.q_norm.weight", (head,)
            yield f"{prefix}self_attn.k_norm.weight", (head,)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        yield from _experts(config, prefix) if kind in _MLPS else _mlp(config, f"{prefix}mlp.")


def _mlp(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _gated(prefix, ("gate_proj", "up_proj", "down_proj"), config["intermediate_size"], config["hidden_size"])


def _experts(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    block, *names = _MLPS[config["model_type"]]
    hidden, inner = config["hidden_size"], config.get("moe_intermediate_size", config["intermediate_size"])
    count = config.get("num_experts") or config["num_local_experts"]
    yield f"{prefix}{block}gate.weight", (count, hidden)
    for expert in range(count):
        yield from _gated(f"{prefix}{block}experts.{expert}.", names, inner, hidden)
    if "shared_expert_intermediate_size" in config:
        yield from _gated(f"{prefix}{block}shared_expert.", names, config["shared_expert_intermediate_size"], hidden)
        yield f"{prefix}{block}shared_expert_gate.weight", (1, hidden)


def _gated(prefix: str, names: Sequence[str], inner: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
        yield f"{prefix}{name}.weight", shape


def _values(seed: int, name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # [-1, 1)
    scaled = uniform * np.float32(0.25)
    if name.endswith("norm.weight"):
        scaled = scaled + np.float32(1)
    if dtype == "float16":
        return scaled.astype("<f2").tobytes()
    # bfloat16 by hand: round to nearest even on the upper half of a float32.
    words = scaled.astype("<f4").view("<u4")
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()
