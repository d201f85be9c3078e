"""Gemma 2: ``Gemma2ForCausalLM``. Norms before and after each branch, soft caps, a window in every other layer."""

from __future__ import annotations

from shardyard.builder.families import gemma
from shardyard.builder.families.blocks import ATTENTION, ENDS, HF, MLP, NORMS, TL
from shardyard.builder.families.rules import Cut, Family, Part, Rule

__all__ = ["GEMMA2"]

_AROUND_MLP = tuple(
    Rule(
        f"{TL}{side}_feedforward_layernorm.weight",
        Cut.WHOLE,
        (Part(f"{HF}{side}_feedforward_layernorm.weight", "hidden"),),
    )
    for side in ("pre", "post")
)

GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    table=tuple(map(gemma.plus_one, (*ENDS, *NORMS, *_AROUND_MLP, *ATTENTION, *MLP))),
    defaults={
        **gemma.DEFAULTS,
        "attn_softcap": 50.0,
        "final_softcap": 30.0,
        "sliding_window": 4096,
        "score_scalar": 256,
    },
    extras={
        **gemma.EXTRAS,
        "query_pre_attn_scalar": lambda config: round(config.attention_scale**-2, 6),
        "attn_logit_softcapping": lambda config: config.attn_softcap,
        "final_logit_softcapping": lambda config: config.final_softcap,
    },
    fixed={**gemma.FIXED, "post_norms": True, "sliding_every": 2},
    keys={**gemma.KEYS, "score_scalar": "query_pre_attn_scalar"},
    derive=gemma.derive,
    reads=gemma.READS
    | {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"},
    refused=gemma.REFUSED,
)
