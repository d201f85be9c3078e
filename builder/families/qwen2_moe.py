"""Qwen2-MoE and Qwen1.5-MoE: ``Qwen2MoeForCausalLM``. Some layers have experts and one that is always used."""

from __future__ import annotations

from shardyard.builder.families.blocks import ATTENTION, ENDS, HF, MLP, NORMS, TL, experts
from shardyard.builder.families.qwen2 import DEFAULTS, EXTRAS
from shardyard.builder.families.rules import Cut, Family, Part, Rule

__all__ = ["QWEN2_MOE"]

_SHARED = f"{HF}mlp.shared_expert."
_PAIR = tuple(Part(f"{_SHARED}{name}_proj.weight", "shared_inner", "hidden") for name in ("up", "gate"))
_DOWN = (Part(f"{_SHARED}down_proj.weight", "hidden", "shared_inner"),)
_GATE = (Part(f"{HF}mlp.shared_expert_gate.weight", "one", "hidden"),)

QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    table=(
        *(*ENDS, *NORMS, *ATTENTION, *MLP, *experts("mlp", gate="gate_proj", up="up_proj", down="down_proj")),
        Rule(f"{TL}mlp.shared_expert.fc.weight", Cut.ROWS, _PAIR, when="shared"),
        Rule(f"{TL}mlp.shared_expert.proj.weight", Cut.COLUMNS, _DOWN, when="shared"),
        Rule(f"{TL}mlp.shared_expert_gate.weight", Cut.WHOLE, _GATE, when="shared"),
    ),
    defaults={
        **DEFAULTS,
        "num_experts": 60,
        "experts_per_token": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
    extras={**EXTRAS, "qwen_type": "qwen2_moe", "hidden_act": "swiglu"},
    fixed={"dense_bias": False, "mlp_bias": False},
    keys={"qkv_bias": "qkv_bias"},
    reads=frozenset({"num_experts"}),
)
