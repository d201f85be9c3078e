"""The config.json of TensorRT-LLM's unified checkpoint."""

from __future__ import annotations

from typing import Any

from shardyard.builder.config.hf_config import HfConfig
from shardyard.spec import ParallelSpec

__all__ = ["QUANT_ALGOS", "unified_config"]

_POSITIONS = {"rope": "rope_gpt_neox", "learned": "learned_absolute", "alibi": "alibi_with_scale"}

#: TensorRT-LLM's name for each of the pipeline file's quantizations. Weights stay plain here; the build quantizes.
QUANT_ALGOS: dict[str, str | None] = {"none": None, "dequantized": None, "w8a16": "W8A16", "w4a16": "W4A16"}


def unified_config(config: HfConfig, parallel: ParallelSpec, dtype: str, quantization: str) -> dict[str, Any]:
    """Return the content of config.json for rank files of element type ``dtype`` (a type's name)."""
    extras = config.family.extras.items()
    return {
        "architecture": config.family.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": config.head_dim,
        "qk_layernorm": False,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "position_embedding_type": _POSITIONS[config.position],
        "norm_epsilon": config.norm_epsilon,
        "hidden_act": config.activation,
        "tie_word_embeddings": config.tied,
        "use_parallel_embedding": parallel.use_parallel_embedding
        or (config.family.shards_embedding and parallel.tp > 1),
        "embedding_sharding_dim": parallel.embedding_sharding_dim,
        "runtime_defaults": None,
        "mapping": _mapping(parallel),
        "quantization": _quantization(quantization),
        **_rotary(config),
        **_window(config),
        **{key: value(config) if callable(value) else value for key, value in extras},
    }


def _rotary(config: HfConfig) -> dict[str, Any]:
    if config.rope is None:
        return {}
    rope = {"rotary_embedding_dim": config.rope.rotary_dim, "rotary_base": config.rope.theta}
    scaling = dict(config.rope.scaling) if config.rope.scaling else None
    if scaling is None or config.rope.kind != "longrope":
        return {**rope, "rotary_scaling": scaling}
    # A kind of position of its own, with keys of its own, and the scaling left empty.
    return {
        **rope,
        "rotary_scaling": None,
        "position_embedding_type": "long_rope",
        "original_max_position_embeddings": scaling["original_max_position_embeddings"],
        "longrope_scaling_short_factors": scaling["short_factor"],
        "longrope_scaling_long_factors": scaling["long_factor"],
    }


def _window(config: HfConfig) -> dict[str, Any]:
    """Hugging Face's own keys: TensorRT-LLM takes windows when it serves, and the engine for CPUs needs to know."""
    if config.sliding_window is None:
        return {}
    kinds = [f"{'sliding' if slides else 'full'}_attention" for slides in config.sliding_layers]
    return {"sliding_window": config.sliding_window, "layer_types": kinds}


def _mapping(parallel: ParallelSpec) -> dict[str, int]:
    return {
        "world_size": parallel.world_size,
        "gpus_per_node": 8,
        "cp_size": parallel.cp,
        "tp_size": parallel.tp,
        "pp_size": parallel.pp,
        "moe_tp_size": parallel.moe_tp,
        "moe_cluster_size": 1,
        "moe_ep_size": parallel.moe_ep,
        "attn_tp_size": -1,
        "attn_cp_size": -1,
    }


def _quantization(name: str) -> dict[str, Any]:
    return {
        "quant_algo": QUANT_ALGOS[name],
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": None,
    }
