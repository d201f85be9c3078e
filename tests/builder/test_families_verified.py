"""Every family on a grid that suits it: converted rank files hold the source's bytes and compute what it computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.families import FAMILIES
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.proof.parity import compare_layers
from shardyard.builder.source.checkpoint import open_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec

Make = Callable[..., Path]

CASES: dict[str, dict[str, Any]] = {
    "llama": {"tp": 4, "pp": 2},
    "mistral": {"tp": 2, "pp": 2},
    "mixtral": {"tp": 4, "moe_ep": 2},
    "qwen2": {"tp": 2, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
    "qwen2_moe": {"tp": 2, "pp": 2, "moe_ep": 2},
    "qwen3": {"tp": 2, "pp": 3},
    "qwen3_moe": {"tp": 2},
    "phi3": {"tp": 2},
    "gemma": {"tp": 2},
    "gemma2": {"tp": 2, "use_parallel_embedding": True},
    "gpt2": {"tp": 2, "pp": 2},
    "gpt_neox": {"tp": 2},
    "falcon": {"tp": 2},
    "opt": {"tp": 2, "use_parallel_embedding": True},
}


def test_every_family_is_here() -> None:
    assert {family.name for family in FAMILIES.values()} == set(CASES)


@pytest.mark.parametrize("family", CASES)
def test_a_family_is_verified(make_checkpoint: Make, tmp_path: Path, family: str) -> None:
    source, parallel = open_source(make_checkpoint("--family", family)), ParallelSpec(**CASES[family])
    convert_checkpoint(source.folder, tmp_path, parallel)
    assert compare_bytes(source, tmp_path, parallel, "none", Console(quiet=True)).faults == []
    found = compare_layers(source, tmp_path, parallel)
    assert found.first_difference is None
    assert len(found.layers) == 1 + source.config.num_hidden_layers
    assert max(prompt.prompt_tokens for prompt in found.prompts) == 320
    assert all(prompt.passed for prompt in found.prompts)
