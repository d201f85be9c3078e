"""Gemma 1: ``GemmaForCausalLM``.

The source holds norm weights w where the maths is x · (1 + w). The rank files hold 1 + w, as TensorRT-LLM's converter
writes them, so that every engine runs a plain RMSNorm. TensorRT-LLM shards the embedding of this family whenever
tp > 1, whatever its configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardyard.builder.families.blocks import ATTENTION, ENDS, MLP, NORMS
from shardyard.builder.families.rules import Cut, Family, Rule

__all__ = ["DEFAULTS", "EXTRAS", "FIXED", "GEMMA", "KEYS", "READS", "REFUSED", "derive", "plus_one"]

DEFAULTS = {
    "norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tied": True,
}
#: The first config.json files name `gelu` in hidden_act, which transformers replaces by the approximation.
KEYS = {"hidden_act": "hidden_activation"}
FIXED = {"norm": "rms_plus_one", "qkv_bias": False, "dense_bias": False, "mlp_bias": False}
EXTRAS = {"attn_bias": False, "mlp_bias": False, "inter_layernorms": lambda config: config.post_norms}
READS = frozenset({"hidden_act"})
REFUSED = (
    ("attention_bias", (False,), "biases in attention, which TensorRT-LLM's Gemma has not"),
    ("hidden_act", ("gelu", "gelu_pytorch_tanh"), "another activation"),
)


def derive(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embedding's scale."""
    hidden = raw.get("hidden_size")
    return {"embedding_scale": hidden**0.5 if isinstance(hidden, int) and 0 < hidden < 1 << 62 else None}


def plus_one(rule: Rule) -> Rule:
    """Return the rule as this family needs it: norms are written plus one, and the embedding is sharded."""
    if rule.cut is Cut.EMBEDDING:
        return replace(rule, cut=Cut.SHARDED)
    return replace(rule, added=1.0) if rule.target.endswith(("norm.weight", "ln_f.weight")) else rule


GEMMA = Family(
    name="gemma",
    architecture="GemmaForCausalLM",
    table=tuple(map(plus_one, (*ENDS, *NORMS, *ATTENTION, *MLP))),
    defaults=DEFAULTS,
    extras=EXTRAS,
    fixed=FIXED,
    keys=KEYS,
    derive=derive,
    reads=READS,
    refused=REFUSED,
)
