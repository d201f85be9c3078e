"""Lines that the tables of several families share: the decoder as Llama's authors named its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardyard.builder.families.rules import Cut, On, Part, Rule

__all__ = [
    "ATTENTION",
    "BIASED",
    "ENDS",
    "HF",
    "MLP",
    "NORMS",
    "QK_NORMS",
    "TL",
    "embeddings",
    "experts",
    "layer_norm",
    "linear",
    "moe_config",
]

#: Prefixes of a layer's tensors: in the source, and in the rank files.
HF = "model.layers.{}."
TL = "transformer.layers.{}."
_Q, _K, _V, _O = (f"{HF}self_attn.{name}_proj." for name in "qkvo")
_GATE, _UP, _DOWN = (f"{HF}mlp.{name}_proj." for name in ("gate", "up", "down"))
_QKV = tuple(Part(f"{name}weight", rows, "hidden") for name, rows in ((_Q, "q"), (_K, "kv"), (_V, "kv")))
_QKV_BIAS = tuple(Part(f"{name}bias", rows) for name, rows in ((_Q, "q"), (_K, "kv"), (_V, "kv")))


def embeddings(embedding: str, head: str) -> tuple[Rule, ...]:
    """Return the lines of the token embeddings and of the output matrix, which are the same tensor where tied."""
    table, rows = Part(embedding, "vocab", "hidden"), Part(head, "vocab", "hidden")
    return (
        Rule("transformer.vocab_embedding.weight", Cut.EMBEDDING, (table,), On.FIRST),
        Rule("lm_head.weight", Cut.VOCAB, (rows,), On.LAST, when="untied"),
        Rule("lm_head.weight", Cut.VOCAB, (table,), On.LAST, when="tied"),
    )


def layer_norm(target: str, source: str, on: On = On.LAYER, when: str = "always") -> tuple[Rule, ...]:
    """Return the lines of a LayerNorm, which has a bias."""
    kinds = ("weight", "bias")
    return tuple(Rule(f"{target}.{kind}", Cut.WHOLE, (Part(f"{source}.{kind}", "hidden"),), on, when) for kind in kinds)


def linear(target: str, cut: Cut, parts: tuple[Part, ...], bias: str) -> tuple[Rule, ...]:
    """Return the lines of a linear layer; its bias is there where the flag ``bias`` is set.

    ``parts`` are named without ``.weight``. A bias is cut with the rows; sums over columns have a whole one.
    """
    weights = tuple(replace(part, name=f"{part.name}.weight") for part in parts)
    biases = tuple(replace(part, name=f"{part.name}.bias", columns=None, transposed=False) for part in parts)
    return (
        Rule(f"{target}.weight", cut, weights),
        Rule(f"{target}.bias", Cut.WHOLE if cut is Cut.COLUMNS else cut, biases, when=bias),
    )


ENDS = (
    *embeddings("model.embed_tokens.weight", "lm_head.weight"),
    Rule("transformer.ln_f.weight", Cut.WHOLE, (Part("model.norm.weight", "hidden"),), On.LAST),
)
NORMS = (
    Rule(f"{TL}input_layernorm.weight", Cut.WHOLE, (Part(f"{HF}input_layernorm.weight", "hidden"),)),
    Rule(f"{TL}post_layernorm.weight", Cut.WHOLE, (Part(f"{HF}post_attention_layernorm.weight", "hidden"),)),
)
ATTENTION = (
    Rule(f"{TL}attention.qkv.weight", Cut.ROWS, _QKV),
    Rule(f"{TL}attention.qkv.bias", Cut.ROWS, _QKV_BIAS, when="qkv_bias"),
    Rule(f"{TL}attention.dense.weight", Cut.COLUMNS, (Part(f"{_O}weight", "hidden", "q"),)),
    Rule(f"{TL}attention.dense.bias", Cut.WHOLE, (Part(f"{_O}bias", "hidden"),), when="dense_bias"),
)
QK_NORMS = tuple(
    Rule(f"{TL}attention.{name}_layernorm.weight", Cut.WHOLE, (Part(f"{HF}self_attn.{name}_norm.weight", "head"),))
    for name in "qk"
)
# In TensorRT-LLM `fc` is the branch through the activation, which Hugging Face calls gate_proj, and `gate` is up_proj.
# Both have one shape: the wrong way round loads well and answers garbage.
MLP = (
    Rule(f"{TL}mlp.fc.weight", Cut.ROWS, (Part(f"{_GATE}weight", "inner", "hidden"),), when="dense"),
    Rule(f"{TL}mlp.gate.weight", Cut.ROWS, (Part(f"{_UP}weight", "inner", "hidden"),), when="dense"),
    Rule(f"{TL}mlp.proj.weight", Cut.COLUMNS, (Part(f"{_DOWN}weight", "hidden", "inner"),), when="dense"),
)
BIASED = (
    Rule(f"{TL}mlp.fc.bias", Cut.ROWS, (Part(f"{_GATE}bias", "inner"),), when="mlp_bias"),
    Rule(f"{TL}mlp.gate.bias", Cut.ROWS, (Part(f"{_UP}bias", "inner"),), when="mlp_bias"),
    Rule(f"{TL}mlp.proj.bias", Cut.WHOLE, (Part(f"{_DOWN}bias", "hidden"),), when="mlp_bias"),
)


def experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Return the lines of the experts of ``block``, whose matrices have these names in the source.

    The order is the other sense than of a dense MLP: up comes first, then gate. The router stays float32.
    """
    name = f"{HF}{block}.experts.{{expert}}."
    pair = tuple(Part(f"{name}{part}.weight", "expert_inner", "hidden") for part in (up, gate))
    lowered = (Part(f"{name}{down}.weight", "hidden", "expert_inner"),)
    router = (Part(f"{HF}{block}.gate.weight", "experts", "hidden"),)
    return (
        Rule(f"{TL}mlp.router.weight", Cut.WHOLE, router, when="moe", dtype="float32"),
        Rule(f"{TL}mlp.fc.weight", Cut.ROWS, pair, when="moe", experts=True),
        Rule(f"{TL}mlp.proj.weight", Cut.COLUMNS, lowered, when="moe", experts=True),
    )


def moe_config(config: Any) -> Mapping[str, Any]:
    """Return TensorRT-LLM's ``moe`` section; normalization_mode 1 makes the chosen experts' weights sum to one."""
    return {
        "num_experts": config.num_experts,
        "top_k": config.experts_per_token,
        "normalization_mode": int(config.norm_topk_prob),
        "shared_expert_intermediate_size": config.shared_expert_intermediate_size,
        "sparse_mixer_epsilon": 0.01,
        "tp_mode": 0,
        "device_limited_n_group": 0,
        "device_limited_topk_group": 0,
        "device_limited_routed_scaling_factor": 1.0,
    }
