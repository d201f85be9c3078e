"""Of every family and on every grid, the rank files put back together are the source, and nothing of it is missing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shardyard.builder.config.hf_config import HfConfig, parse_config
from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.families import FAMILIES
from shardyard.builder.families.rules import Cut, Part
from shardyard.builder.layout.placing import Placed, place_rules, source_shape
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.source.checkpoint import open_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec

QUIET = Console(quiet=True)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
#: Families whose query heads have a key/value head each.
ALIKE = ("gpt2", "gpt_neox", "opt")
#: Families whose config.json has no head_dim.
PLAIN_HEADS = (*ALIKE, "falcon", "phi3")
#: What else config.json may say, family by family.
CHOICES: dict[str, dict[str, list[Any]]] = {
    "llama": {"attention_bias": [True, False], "mlp_bias": [True, False]},
    "gpt_neox": {"rotary_pct": [0.5, 1.0]},
    "mixtral": {"num_local_experts": [6, 12]},
    "qwen2_moe": {
        "num_experts": [6, 12],
        "decoder_sparse_step": [1, 2],
        "mlp_only_layers": [[], [1]],
        "qkv_bias": [True, False],
    },
    "qwen3_moe": {"num_experts": [6, 12], "num_experts_per_tok": [2], "mlp_only_layers": [[], [0]]},
    "falcon": {
        "new_decoder_architecture": [True, False],
        "multi_query": [True, False],
        "parallel_attn": [True, False],
        "num_ln_in_parallel_attn": [None, 1, 2],
        "bias": [True, False],
    },
}


@st.composite
def models(draw: st.DrawFn, name: str) -> tuple[dict[str, Any], ParallelSpec, str]:
    """A config.json of the family, degrees that can cut it, and its type."""
    family = next(family for family in FAMILIES.values() if family.name == name)
    tp = draw(st.sampled_from([1, 2, 3, 4, 6]))
    kv_heads = draw(st.sampled_from([heads for heads in (1, 2, 3, 4, 6) if not (tp % heads and heads % tp)]))
    heads = max(tp, kv_heads) * draw(st.integers(1, 2))
    head_dim, layers = draw(st.sampled_from([4, 8])), draw(st.integers(1, 4))
    kv_heads = heads if name in ALIKE else kv_heads
    common = {
        "hidden_size": heads * head_dim if name in PLAIN_HEADS else 12,
        "intermediate_size": 12 * draw(st.integers(1, 2)),
        "moe_intermediate_size": 12 * draw(st.integers(1, 2)),
        "shared_expert_intermediate_size": 12 * draw(st.integers(1, 2)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": None if name in PLAIN_HEADS else head_dim,
        "vocab_size": draw(st.integers(1, 30)),
        "max_position_embeddings": draw(st.integers(1, 30)),
        "tied": draw(st.booleans()),
    }
    keys = {"tied": "tie_word_embeddings", **family.keys}
    config: dict[str, Any] = {keys.get(key, key): value for key, value in common.items()}
    config |= {key: draw(st.sampled_from(values)) for key, values in CHOICES.get(name, {}).items()}
    if name in ALIKE:
        config.pop("num_key_value_heads", None)
    if name == "falcon" and not config["new_decoder_architecture"] and not config["multi_query"]:
        config["num_kv_heads"] = heads
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    moe_ep = (
        draw(st.sampled_from([ep for ep in (1, 2, 3, 6) if tp % ep == 0])) if "moe" in name or name == "mixtral" else 1
    )
    parallel = ParallelSpec(
        tp=tp,
        pp=draw(st.integers(1, layers)),
        cp=1 if moe_ep > 1 else draw(st.integers(1, 2)),
        moe_ep=moe_ep,
        use_parallel_embedding=draw(st.booleans()),
        embedding_sharding_dim=draw(st.sampled_from([0, 1])) if common["hidden_size"] % tp == 0 else 0,
    )
    return {**config, "architectures": [family.architecture], "torch_dtype": dtype}, parallel, dtype


@pytest.mark.parametrize("name", sorted(family.name for family in FAMILIES.values()))
def test_every_grid_reassembles_to_the_source(name: str) -> None:
    @settings(deadline=None, max_examples=14, derandomize=True, database=None)
    @given(model=models(name))
    def law(model: tuple[dict[str, Any], ParallelSpec, str]) -> None:
        raw, parallel, dtype = model
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), raw, parallel, DTYPES[dtype])

    law()


def check(folder: Path, raw: dict[str, Any], parallel: ParallelSpec, dtype: Any) -> None:
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    (source / "config.json").write_text(json.dumps(raw))
    config = parse_config(raw, source / "config.json")
    # Numbers that bfloat16 holds exactly, all different up to their sign in a small tensor.
    tensors = {
        part.name: np.random.default_rng(len(part.name)).integers(-120, 120, source_shape(part, config)).astype(dtype)
        for placed in place_rules(config, 1)
        for part in placed.parts
    }
    save_file(tensors, source / "model.safetensors")
    convert_checkpoint(source, out, parallel)
    ranks = [load_file(out / f"rank{file}.safetensors") for file in range(parallel.tp * parallel.pp)]
    reached = {name: np.zeros(tensor.shape, bool) for name, tensor in tensors.items()}
    for placed in place_rules(config, parallel.pp):
        held = [
            rank.pop(placed.target) for rank in ranks[placed.stage * parallel.tp : (placed.stage + 1) * parallel.tp]
        ]
        wanted = np.dtype(placed.rule.dtype) if placed.rule.dtype else np.dtype(dtype)
        assert {array.dtype for array in held} == {wanted}
        for part, array in zip(placed.parts, together(placed, held, config, parallel), strict=True):
            exact = (inside(tensors[part.name], part, config).astype(np.float32) + placed.rule.added).astype(wanted)
            np.testing.assert_array_equal(array, exact, err_msg=placed.target)
            inside(reached[part.name], part, config)[...] = True
    assert not any(ranks)
    for name, mask in reached.items():
        assert mask[2:].all() if name.endswith("embed_positions.weight") else mask.all()
    assert compare_bytes(open_source(source), out, parallel, "none", QUIET).faults == []


def inside(tensor: np.ndarray, part: Part, config: HfConfig) -> np.ndarray:
    """Return a part as a view of its source tensor, [groups, rows of a group, …] where it is fused."""
    view = tensor.T if part.transposed else tensor
    if part.fused is None:
        return view
    groups = config.sizes[part.fused.groups]
    sizes = [config.sizes[size] // groups for size in part.fused.sizes]
    grouped = view.reshape(groups, -1, *view.shape[1:]) if not part.transposed else view[None]
    assert np.shares_memory(grouped, tensor)
    first = sum(sizes[: part.fused.at])
    return grouped[:, first : first + sizes[part.fused.at]]


def together(placed: Placed, held: list[np.ndarray], config: HfConfig, parallel: ParallelSpec) -> list[np.ndarray]:
    """Return the parts of a tensor whose pieces ``held`` the ranks of one stage have."""
    rule, tp, ep = placed.rule, parallel.tp, parallel.moe_ep
    if not rule.experts:
        return joined(rule.cut, rule.parts, held, config, parallel)
    # Ranks of one expert-parallel number hold the same experts; the number changes fastest.
    parts = []
    for block in (held[first::ep] for first in range(ep)):
        assert {len(array) for array in block} == {config.num_experts // ep}
        assert len(block) == tp // ep
        for expert in zip(*block, strict=True):
            parts += joined(rule.cut, rule.parts, list(expert), config, parallel)
    return parts


def joined(
    cut: Cut, parts: tuple[Part, ...], held: list[np.ndarray], config: HfConfig, parallel: ParallelSpec
) -> list[np.ndarray]:
    ranks, sharded = len(held), parallel.use_parallel_embedding or cut is Cut.SHARDED
    if cut in (Cut.EMBEDDING, Cut.SHARDED):
        cut = (Cut.COLUMNS if parallel.embedding_sharding_dim else Cut.VOCAB) if sharded else Cut.WHOLE
    if cut is Cut.COLUMNS:
        return [shaped(np.concatenate(held, axis=1), parts[0], config)]
    if cut is Cut.WHOLE:
        assert all(np.array_equal(array, held[0]) for array in held)
        return [shaped(held[0], parts[0], config)]
    if cut is Cut.VOCAB:
        rows = config.sizes[parts[0].rows]
        table = np.concatenate(held)
        assert len(table) - rows < ranks
        assert not table[rows:].any()
        return [shaped(table[:rows], parts[0], config)]
    copies = [max(1, ranks // config.num_key_value_heads) if part.rows == "kv" else 1 for part in parts]
    sizes = [config.sizes[part.rows] * copy // ranks for part, copy in zip(parts, copies, strict=True)]
    cuts = [np.split(array, np.cumsum(sizes)[:-1]) for array in held]
    out = []
    for number, (part, copy) in enumerate(zip(parts, copies, strict=True)):
        slices = [cut[number] for cut in cuts]
        assert all(np.array_equal(array, slices[at - at % copy]) for at, array in enumerate(slices))
        out.append(shaped(np.concatenate(slices[::copy]), part, config))
    return out


def shaped(array: np.ndarray, part: Part, config: HfConfig) -> np.ndarray:
    """Give a whole part the shape that ``inside`` gives it."""
    return array.reshape(config.sizes[part.fused.groups], -1, *array.shape[1:]) if part.fused else array
