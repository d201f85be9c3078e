"""Layers as one operation beside their attention: which networks have them, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.graph import build_graph
from shardyard.runtime.layers.fused_blocks import FusedBlocks
from shardyard.runtime.native.products import load_products
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

PROMPT = np.random.default_rng(11).integers(6, 515, 40).tolist()
#: A multiple of 64, so that all matrices are packed.
INNER = ("--set", "intermediate_size=384")
INT8: dict[str, Any] = {"quantization": "w8a16", "engine": {"matmul": "native"}}
#: Biases in qkv, both branches of the MLP in one array, tanh, norms of heads, windows.
FUSED = ("llama", "qwen2", "qwen3", "phi3", "gemma", "mistral")
#: Norms after the halves, experts, norms with a mean and a plain MLP, both halves at once.
APART = ("gemma2", "mixtral", "gpt2", "gpt_neox")


def fused_layers(spec: Any, arrays: Any, **options: Any) -> int:
    """Return how many layers of an engine's network are one operation."""
    products = load_products("avx2")
    graph = build_graph(spec, arrays, options.pop("all_reduce", None), products=products, **options)
    return sum(node.get_type_name() == "PackedLayer" for node in graph.get_ops())


@pytest.mark.parametrize("family", FUSED)
def test_logits_are_those_of_single_operations(
    make_checkpoint: Callable[..., Path],
    make_engine: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    engine = make_engine(checkpoint=make_checkpoint("--family", family, *INNER), **INT8)
    spec, arrays = open_engine(engine / "rank0.engine")
    assert fused_layers(spec, arrays) == len(spec.layers)
    settings, world = replace(RankSettings.exact(), products="avx2"), World(1, 1)
    fused = RankModel(spec, arrays, world, settings)
    monkeypatch.setattr(FusedBlocks, "fuses", staticmethod(lambda spec, weights: False))
    assert fused_layers(spec, arrays) == 0
    apart = RankModel(spec, arrays, world, settings)
    for count in (1, 2, 17, 40):
        got, wanted = fused.logits(PROMPT[:count]), apart.logits(PROMPT[:count])
        assert got is not None and wanted is not None
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("family", APART)
def test_layers_of_other_forms_are_not_fused(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path], family: str
) -> None:
    engine = make_engine(checkpoint=make_checkpoint("--family", family), **INT8)
    assert fused_layers(*open_engine(engine / "rank0.engine")) == 0


def test_a_matrix_that_is_not_packed_keeps_the_layers_apart(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]
) -> None:
    engine = make_engine(checkpoint=make_checkpoint("--set", "intermediate_size=352"), **INT8)
    assert fused_layers(*open_engine(engine / "rank0.engine")) == 0


def test_ranks_fuse_what_the_compiled_group_adds(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]
) -> None:
    engine = make_engine(tp=2, checkpoint=make_checkpoint("--set", "intermediate_size=512"), **INT8)
    spec, arrays = open_engine(engine / "rank0.engine")
    assert fused_layers(spec, arrays, all_reduce=lambda x: x, group=0) == len(spec.layers)
    assert fused_layers(spec, arrays, all_reduce=lambda x: x) == 0
