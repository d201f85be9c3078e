"""The network of a rank's engine, from the unified checkpoint's config.json and the rank file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shardyard.builder.targets.alibi import penalties
from shardyard.runtime.network import (
    Activation,
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    LayerSpec,
    MlpSpec,
    NetworkSpec,
    NormKind,
    RopeSpec,
    WeightType,
)
from shardyard.runtime.rope import rope_problem

__all__ = ["describe_network", "length_problem", "network_problem"]

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_SANDWICH = BlockSpec(
    after_attention="post_layernorm", before_mlp="pre_feedforward_layernorm", after_mlp="post_feedforward_layernorm"
)


def _neox(config: Config) -> BlockSpec:
    return BlockSpec(config.get("use_parallel_residual", True), before_mlp="post_attention_layernorm")


def _falcon(config: Config) -> BlockSpec:
    if config["new_decoder_architecture"]:
        return BlockSpec(True, before_mlp="mlp_layernorm")
    return BlockSpec(True, before_mlp="input_layernorm") if config["parallel_attention"] else BlockSpec()


@dataclass(frozen=True)
class _Family:
    """How a family's maths differs from Llama's; what is not here follows from config.json and the tensors' shapes."""

    norm: NormKind = "rms"
    block: Callable[[Config], BlockSpec] = lambda config: BlockSpec()
    embedding_scale: Callable[[Config], float] = lambda config: 1.0


_LLAMA = _Family()
_LAYER_NORM = _Family("layer")
_GEMMA = _Family(embedding_scale=lambda config: float(config["hidden_size"] ** 0.5))
_FAMILIES: dict[str, _Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _Family(block=lambda config: _SANDWICH, embedding_scale=_GEMMA.embedding_scale),
    "GPTForCausalLM": _LAYER_NORM,
    "OPTForCausalLM": _LAYER_NORM,
    "GPTNeoXForCausalLM": _Family("layer", _neox),
    "FalconForCausalLM": _Family("layer", _falcon),
}

#: The activation behind each name; TensorRT-LLM's names of gated ones say that fc holds both branches.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "geglu": "gelu_tanh",
    "relu": "relu",
}
_POSITIONS = ("rope_gpt_neox", "long_rope", "learned_absolute", "alibi", "alibi_with_scale")
_EMBEDDINGS: dict[tuple[bool, int], Literal["whole", "vocab", "hidden"]] = {
    (False, 0): "whole",
    (False, 1): "whole",
    (True, 0): "vocab",
    (True, 1): "hidden",
}


def network_problem(config: Config) -> str | None:
    """Return what of the network that config.json describes the CPU engine cannot run; None when it can run all."""
    known: dict[str, tuple[object, ...]] = {
        "architecture": tuple(_FAMILIES),
        "hidden_act": tuple(_ACTIVATIONS),
        "position_embedding_type": _POSITIONS,
        "do_layer_norm_before": (True, None),
    }
    for key, fine in known.items():
        if config.get(key) not in fine:
            return f"{key}={config.get(key)!r}; the engine knows {', '.join(map(str, fine))}"
    rope = _rope(config)
    problem = rope_problem(rope, 1) if rope else None
    return f"rotary_scaling={config['rotary_scaling']!r}; {problem}" if problem else None


def describe_network(
    config: Config,
    rank: int,
    shapes: Shapes,
    layers: range,
    *,
    tied: bool,
    weights: WeightType,
    max_positions: int | None,
) -> NetworkSpec:
    """Return the network of rank ``rank``, which holds tensors of ``shapes`` and computes ``layers``.

    ``tied``: embedding and head are one array in the engine. ``max_positions``: the longest sequence, in tokens; None:
    what the model was trained for.
    """
    mapping, family = config["mapping"], _FAMILIES[config["architecture"]]
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    stage, tp_rank = divmod(rank, tp)
    return NetworkSpec(
        layers=_layers(config, layers, shapes),
        hidden=config["hidden_size"],
        block=family.block(config),
        norm=family.norm,
        norm_epsilon=config["norm_epsilon"],
        attention=_attention(config, shapes, tp_rank),
        mlp=_mlp(config, shapes),
        experts=_experts(config, tp_rank),
        embedding_scale=family.embedding_scale(config),
        learned_positions=config["position_embedding_type"] == "learned_absolute",
        logit_softcap=config.get("final_logit_softcapping"),
        vocab=config["vocab_size"],
        vocab_rows=-(-config["vocab_size"] // tp),
        max_positions=max_positions or config["max_position_embeddings"],
        tp=tp,
        tp_rank=tp_rank,
        pp=pp,
        stage=stage,
        embedding=_EMBEDDINGS[config["use_parallel_embedding"], config["embedding_sharding_dim"]],
        tied=tied,
        weights=weights,
    )


def length_problem(config: Config, spec: NetworkSpec) -> str | None:
    """Return why sequences of ``spec.max_positions`` tokens are too long for the network; None when they are not."""
    known = config["max_position_embeddings"]
    if spec.learned_positions and spec.max_positions > known:
        return f"the model has learned {known} positions"
    rope = spec.attention.rope
    return rope_problem(rope, spec.max_positions) if rope else None


def _layers(config: Config, layers: range, shapes: Shapes) -> tuple[LayerSpec, ...]:
    kinds = config.get("layer_types")
    return tuple(
        LayerSpec(
            "experts" if f"transformer.layers.{index}.mlp.router.weight" in shapes else "mlp",
            config["sliding_window"] if kinds and kinds[layer] == "sliding_attention" else 0,
        )
        for index, layer in enumerate(layers)
    )


def _attention(config: Config, shapes: Shapes, tp_rank: int) -> AttentionSpec:
    tp, size = config["mapping"]["tp_size"], config["head_size"]
    heads, scale = config["num_attention_heads"] // tp, float(config.get("query_pre_attn_scalar") or size) ** -0.5
    return AttentionSpec(
        heads=heads,
        kv_heads=max(config["num_key_value_heads"], tp) // tp,
        head_size=size,
        scale=scale,
        softcap=config.get("attn_logit_softcapping"),
        norm=_holds(shapes, "attention.q_layernorm.weight"),
        qkv_bias=_holds(shapes, "attention.qkv.bias"),
        dense_bias=_holds(shapes, "attention.dense.bias"),
        rope=_rope(config),
        alibi=penalties(config, scale)[tp_rank * heads :][:heads] or None,
    )


def _rope(config: Config) -> RopeSpec | None:
    if config["position_embedding_type"] not in ("rope_gpt_neox", "long_rope"):
        return None
    return RopeSpec(
        dim=config["rotary_embedding_dim"],
        theta=config["rotary_base"],
        scaling=_long_rope(config) or config["rotary_scaling"],
        trained=config["max_position_embeddings"],
    )


def _long_rope(config: Config) -> Mapping[str, Any] | None:
    if config["position_embedding_type"] != "long_rope":
        return None
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": config["original_max_position_embeddings"],
        "short_factor": config["longrope_scaling_short_factors"],
        "long_factor": config["longrope_scaling_long_factors"],
    }


def _mlp(config: Config, shapes: Shapes) -> MlpSpec:
    inner = config["intermediate_size"] // config["mapping"]["tp_size"]
    rows = {shape[0] for name, shape in shapes.items() if name.endswith(".mlp.fc.weight") and len(shape) == 2}
    fused = rows == {2 * inner}
    return MlpSpec(
        form="gated" if _holds(shapes, "mlp.gate.weight") else "fused" if fused else "plain",
        inner=inner,
        activation=_ACTIVATIONS[config["hidden_act"]],
        bias=_holds(shapes, "mlp.fc.bias"),
    )


def _experts(config: Config, tp_rank: int) -> ExpertsSpec | None:
    moe, mapping = config.get("moe") or {}, config["mapping"]
    if not moe.get("num_experts"):
        return None
    local = moe["num_experts"] // mapping["moe_ep_size"]
    return ExpertsSpec(
        total=moe["num_experts"],
        first=tp_rank % mapping["moe_ep_size"] * local,
        local=local,
        top_k=moe["top_k"],
        renormalize=moe["normalization_mode"] == 1,
        inner=(config.get("moe_intermediate_size") or config["intermediate_size"]) // mapping["moe_tp_size"],
        shared_inner=moe.get("shared_expert_intermediate_size", 0) // mapping["tp_size"],
        activation=_ACTIVATIONS[config["hidden_act"]],
    )


def _holds(shapes: Shapes, name: str) -> bool:
    return any(key.endswith(f".{name}") for key in shapes)
