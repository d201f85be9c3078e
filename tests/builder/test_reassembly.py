"""Every grid that can cut a model re-assembles to its source, byte for byte."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.source.checkpoint import open_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec

Write = Callable[..., Path]
QUIET = Console(quiet=True)


@st.composite
def grids(draw: st.DrawFn) -> tuple[dict[str, Any], ParallelSpec, str]:
    """A model and the degrees that can cut it."""
    tp = draw(st.sampled_from([1, 2, 3, 4, 6]))
    # Key/value heads divide tp, or tp divides them; query heads are a multiple of both.
    kv_heads = draw(st.sampled_from([heads for heads in (1, 2, 3, 4, 6, 8) if not (tp % heads and heads % tp)]))
    heads = max(tp, kv_heads) * draw(st.integers(1, 2))
    head_dim = draw(st.sampled_from([2, 4]))
    layers = draw(st.integers(1, 4))
    model = {
        "architectures": [draw(st.sampled_from(["LlamaForCausalLM", "Qwen2ForCausalLM"]))],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": 12,
        "intermediate_size": tp * draw(st.integers(1, 4)),
        "num_hidden_layers": layers,
        "vocab_size": draw(st.integers(1, 30)),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "torch_dtype": draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    }
    model["mlp_bias"] &= model["architectures"] == ["LlamaForCausalLM"]
    parallel = ParallelSpec(
        tp=tp,
        pp=draw(st.integers(1, layers)),
        cp=draw(st.integers(1, 2)),
        use_parallel_embedding=draw(st.booleans()),
        embedding_sharding_dim=draw(st.sampled_from([0, 1])),
    )
    return model, parallel, draw(st.sampled_from(["auto", "float32", "bfloat16"]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grid=grids(), shards=st.integers(1, 3))
def test_every_grid_reassembles_to_the_source(
    write_checkpoint: Write, grid: tuple[dict[str, Any], ParallelSpec, str], shards: int
) -> None:
    model, parallel, dtype = grid
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        write_checkpoint(source, model, dtype=model["torch_dtype"], shards=shards)
        out.mkdir()
        convert_checkpoint(source, out, parallel, dtype)
        wanted = {key: value for path in source.glob("*.safetensors") for key, value in load_file(path).items()}
        ranks = [load_file(out / f"rank{file}.safetensors") for file in range(parallel.tp * parallel.pp)]
        element = {"auto": model["torch_dtype"]}.get(dtype, dtype)
        config = json.loads((out / "config.json").read_text())
        assert config["dtype"] == element
        rebuilt = reassemble(ranks, model, parallel)
        assert rebuilt.keys() - {"lm_head.weight"} == wanted.keys() - {"lm_head.weight"}
        head = wanted["model.embed_tokens.weight"] if model["tie_word_embeddings"] else wanted["lm_head.weight"]
        for key, tensor in ({"lm_head.weight": head} | wanted).items():
            cast = tensor.astype({"bfloat16": ml_dtypes.bfloat16}.get(element, element))
            assert rebuilt[key].dtype == cast.dtype
            np.testing.assert_array_equal(rebuilt[key], cast, err_msg=key)
        report = compare_bytes(open_source(source), out, parallel, "none", QUIET)
        assert report.faults == []
        assert report.tensors == sum(map(len, ranks))


def reassemble(
    ranks: list[dict[str, np.ndarray]], model: dict[str, Any], parallel: ParallelSpec
) -> dict[str, np.ndarray]:
    """Put the rank files back together by the reference's description of them, one tensor kind at a time."""
    tp, pp = parallel.tp, parallel.pp
    stages = [ranks[stage * tp : (stage + 1) * tp] for stage in range(pp)]
    out = {"model.norm.weight": same(stages[-1], "transformer.ln_f.weight")}
    axis = parallel.embedding_sharding_dim
    name = "transformer.vocab_embedding.weight"
    split = parallel.use_parallel_embedding
    table = np.concatenate([rank[name] for rank in stages[0]], axis) if split else same(stages[0], name)
    out["model.embed_tokens.weight"] = unpadded(table, model["vocab_size"])
    head = np.concatenate([rank["lm_head.weight"] for rank in stages[-1]])
    out["lm_head.weight"] = unpadded(head, model["vocab_size"])
    layer = 0
    for stage, layers in zip(stages, np.array_split(np.arange(model["num_hidden_layers"]), pp), strict=True):
        for local in range(len(layers)):
            prefix = f"transformer.layers.{local}."
            parts = [{k.removeprefix(prefix): v for k, v in rank.items() if k.startswith(prefix)} for rank in stage]
            out |= {f"model.layers.{layer}.{key}": value for key, value in one_layer(parts, model).items()}
            layer += 1
    return out


def one_layer(ranks: list[dict[str, np.ndarray]], model: dict[str, Any]) -> dict[str, np.ndarray]:
    head, kv_heads, tp = model["head_dim"], model["num_key_value_heads"], len(ranks)
    rows = [model["num_attention_heads"] // tp * head, *[max(kv_heads, tp) // tp * head] * 2]
    out = {}
    for kind in ("weight", "bias"):
        if f"attention.qkv.{kind}" in ranks[0]:
            cuts = [np.split(rank[f"attention.qkv.{kind}"], np.cumsum(rows)[:-1]) for rank in ranks]
            for part, slices in zip("qkv", zip(*cuts, strict=True), strict=True):
                copies = max(1, tp // kv_heads) if part != "q" else 1
                for first in range(0, tp, copies):
                    for other in slices[first : first + copies]:
                        np.testing.assert_array_equal(other, slices[first])
                out[f"self_attn.{part}_proj.{kind}"] = np.concatenate(slices[::copies])
        for target, name in (("fc", "gate"), ("gate", "up")):
            if f"mlp.{target}.{kind}" in ranks[0]:
                out[f"mlp.{name}_proj.{kind}"] = np.concatenate([rank[f"mlp.{target}.{kind}"] for rank in ranks])
    for target, name in (("attention.dense", "self_attn.o_proj"), ("mlp.proj", "mlp.down_proj")):
        out[f"{name}.weight"] = np.concatenate([rank[f"{target}.weight"] for rank in ranks], axis=1)
        if f"{target}.bias" in ranks[0]:
            out[f"{name}.bias"] = same(ranks, f"{target}.bias")
    out["input_layernorm.weight"] = same(ranks, "input_layernorm.weight")
    out["post_attention_layernorm.weight"] = same(ranks, "post_layernorm.weight")
    return out


def same(ranks: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    for rank in ranks:
        np.testing.assert_array_equal(rank[name], ranks[0][name])
    return ranks[0][name]


def unpadded(table: np.ndarray, rows: int) -> np.ndarray:
    assert not table[rows:].any()
    return table[:rows]
