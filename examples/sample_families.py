"""What examples/make_checkpoint.py makes of each family: the content of config.json, and the tensors that go with it.

Names, shapes and keys are those of the checkpoints on the Hugging Face hub, which transformers reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sample_configs as configs
import sample_tensors as tensors

__all__ = ["FAMILIES", "SHAPES", "Sample"]

#: Shapes by name. Sizes are odd on purpose: a vocabulary that no tp divides, layers that pp=2 does not divide,
#: fewer key/value heads than tp=4 has ranks.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 515,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    # For qwen3_moe: 0.9 billion parameters, of which a token meets 170 million.
    "moe": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 384,
    },
}
#: The shape "tiny" of the families that came later is smaller still.
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Sample:
    """One family.

    ``tensors`` are lines of sample_tensors.py. ``keys`` are the family's own names of config.json's sizes; None: it has
    no such key. ``tiny`` are the sizes of the shape "tiny" that differ. ``zero_centred``: norms scale by 1 + weight.
    ``transposed``: matrices are stored [in, out].
    """

    config: Mapping[str, Any]
    tensors: str
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    keys: Mapping[str, str | None] = field(default_factory=dict)
    tiny: Mapping[str, int] = field(default_factory=lambda: _SMALL)
    zero_centred: bool = False
    transposed: bool = False


_NO_KV = {"num_key_value_heads": None, "head_dim": None}
_GPT2_KEYS = _NO_KV | {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_FALCON_KEYS = {"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads", "head_dim": None}
_WIDE = {**_SMALL, "head_dim": 32}
_MOE = tensors.FIRST + tensors.ATTENTION + tensors.MLP + tensors.EXPERTS

#: The families by the names that --family takes; falcon_new is Falcon's newer decoder, of the 40B and 180B models.
FAMILIES: dict[str, Sample] = {
    "llama": Sample(configs.LLAMA, tensors.DENSE, tiny={}),
    "qwen2": Sample(configs.QWEN2, tensors.DENSE, tiny={}),
    "mistral": Sample(configs.MISTRAL, tensors.DENSE, tiny=_WIDE),
    "mixtral": Sample(
        configs.MIXTRAL,
        tensors.FIRST + tensors.ATTENTION + tensors.MIXTRAL + tensors.NORMS + tensors.LAST,
        keys={"head_dim": None},
    ),
    "qwen2_moe": Sample(
        configs.QWEN2_MOE, _MOE + tensors.SHARED + tensors.NORMS + tensors.LAST, keys={"head_dim": None}
    ),
    "qwen3": Sample(configs.QWEN3, tensors.DENSE + tensors.QK_NORM, tiny=_WIDE),
    "qwen3_moe": Sample(configs.QWEN3_MOE, _MOE + tensors.QK_NORM + tensors.NORMS + tensors.LAST, tiny=_WIDE),
    "phi3": Sample(configs.PHI3, tensors.FIRST + tensors.PHI3 + tensors.NORMS + tensors.LAST, keys={"head_dim": None}),
    "gemma": Sample(configs.GEMMA, tensors.DENSE, tiny=_WIDE | {"num_key_value_heads": 1}, zero_centred=True),
    "gemma2": Sample(
        configs.GEMMA2, tensors.DENSE + tensors.SANDWICH, tiny=_WIDE | {"num_hidden_layers": 4}, zero_centred=True
    ),
    "gpt2": Sample(configs.GPT2, tensors.GPT2, "transformer.wte.weight", keys=_GPT2_KEYS, transposed=True),
    "gpt_neox": Sample(configs.GPT_NEOX, tensors.GPT_NEOX, "gpt_neox.embed_in.weight", "embed_out.weight", keys=_NO_KV),
    "falcon": Sample(
        configs.FALCON,
        tensors.FALCON,
        "transformer.word_embeddings.weight",
        keys=_FALCON_KEYS | _NO_KV,
    ),
    "falcon_new": Sample(
        configs.FALCON | {"new_decoder_architecture": True},
        tensors.FALCON,
        "transformer.word_embeddings.weight",
        keys=_FALCON_KEYS,
        tiny=_SMALL | {"hidden_size": 128, "num_attention_heads": 8},
    ),
    "opt": Sample(
        configs.OPT, tensors.OPT, "model.decoder.embed_tokens.weight", keys=_NO_KV | {"intermediate_size": "ffn_dim"}
    ),
}
