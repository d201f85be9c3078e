"""The faults that converters make, each written into right rank files: found, with the tensor or the layer's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.layout.placing import Placed, Share, share_of
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.proof.parity import compare_layers
from shardyard.builder.source.checkpoint import SourceCheckpoint, open_source
from shardyard.console import Console
from shardyard.spec import ParallelSpec

Make = Callable[..., Path]
Tensors = dict[str, np.ndarray]
LAYER = "transformer.layers.1."
QKV, DENSE, FC = f"{LAYER}attention.qkv.weight", f"{LAYER}attention.dense.weight", f"{LAYER}mlp.fc.weight"
GATE, BIAS, HEAD = f"{LAYER}mlp.gate.weight", f"{LAYER}attention.dense.bias", "lm_head.weight"
LLAMA = ("--family", "llama", "--set", "attention_bias=true")
MIXTRAL = ("--family", "mixtral")


def rank(folder: Path, number: int) -> Path:
    return folder / f"rank{number}.safetensors"


def change(folder: Path, number: int, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(rank(folder, number))
    edit(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, rank(folder, number))


def swap_files(folder: Path, first: int, second: int) -> None:
    """Exchange two rank files."""
    aside = folder / "aside"
    rank(folder, first).rename(aside)
    rank(folder, second).rename(rank(folder, first))
    aside.rename(rank(folder, second))


def swap_gate_and_up(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 0, lambda held: held.update({FC: held[GATE], GATE: held[FC]}))


def swap_gate_and_up_of_experts(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 0, lambda held: held.update({FC: np.roll(held[FC], held[FC].shape[1] // 2, axis=1)}))


def cut_qkv_as_one_block(folder: Path, source: SourceCheckpoint) -> None:
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    block = np.concatenate([source.array(name) for name in names])
    for number, part in enumerate(np.split(block, 2)):
        change(folder, number, lambda held, part=part: held.update({QKV: part}))  # type: ignore[misc]


def cut_a_replicated_bias(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 1, lambda held: held[BIAS].fill(0))


def replicate_heads_in_turn(folder: Path, source: SourceCheckpoint) -> None:
    """Put h0 h1 h0 h1 on the ranks instead of h0 h0 h1 h1: ranks 1 and 2 exchange keys and values."""
    first, second = load_file(rank(folder, 1))[QKV], load_file(rank(folder, 2))[QKV]
    queries = len(first) - 2 * source.config.head_dim
    change(folder, 1, lambda held: held.update({QKV: np.concatenate([first[:queries], second[queries:]])}))
    change(folder, 2, lambda held: held.update({QKV: np.concatenate([second[:queries], first[queries:]])}))


def reverse_experts(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 3, lambda held: held.update({FC: held[FC][::-1]}))


def exchange_expert_blocks(folder: Path, source: SourceCheckpoint) -> None:
    """Number expert-parallel ranks slowest: ranks 1 and 2 hold each other's experts."""
    first, second = load_file(rank(folder, 1)), load_file(rank(folder, 2))
    for number, other in ((1, second), (2, first)):
        change(folder, number, lambda held, other=other: held.update({FC: other[FC]}))  # type: ignore[misc]


def transpose_ranks(folder: Path, source: SourceCheckpoint) -> None:
    """Number pipeline stages fastest."""
    swap_files(folder, 1, 2)


def split_layers_one_off(folder: Path, source: SourceCheckpoint) -> None:
    """Give the last layer of the first stage to the second: it becomes the second's first."""
    count = len(range(source.config.num_hidden_layers)) - source.config.num_hidden_layers // 2
    first, second = load_file(rank(folder, 0)), load_file(rank(folder, 1))
    shifted = {name: tensor for name, tensor in second.items() if ".layers." not in name}
    for name, tensor in second.items():
        if ".layers." in name:
            number, rest = name.removeprefix("transformer.layers.").split(".", 1)
            shifted[f"transformer.layers.{int(number) + 1}.{rest}"] = tensor
    moved = {name: tensor for name, tensor in first.items() if f".layers.{count - 1}." in name}
    shifted |= {name.replace(f".{count - 1}.", ".0.", 1): tensor for name, tensor in moved.items()}
    save_file({name: tensor for name, tensor in first.items() if name not in moved}, rank(folder, 0))
    save_file(shifted, rank(folder, 1))


def write_the_head_from_the_embedding(folder: Path, source: SourceCheckpoint) -> None:
    embedding = source.array("model.embed_tokens.weight")
    change(folder, 0, lambda held: held.update({HEAD: embedding[: len(held[HEAD])]}))


def lose_the_scaled_rope(folder: Path, source: SourceCheckpoint) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rotary_scaling": None}))


def fill_the_padding(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 1, lambda held: held[HEAD][-1].fill(1))


def flip_a_bit(folder: Path, source: SourceCheckpoint) -> None:
    def flip(held: Tensors) -> None:
        held[DENSE].view(np.uint8)[3, 5] ^= 1

    change(folder, 1, flip)


def transpose_a_row_parallel_weight(folder: Path, source: SourceCheckpoint) -> None:
    change(folder, 0, lambda held: held.update({DENSE: held[DENSE].T}))


@dataclass(frozen=True)
class Mutation:
    """A fault, in what and over which degrees, what the bytes say of it, and which part of the network shows it."""

    write: Callable[[Path, SourceCheckpoint], None]
    options: tuple[str, ...]
    degrees: dict[str, Any]
    fault: str
    part: str | None = None


EP = {"tp": 4, "moe_ep": 2}
MUTATIONS = [
    Mutation(swap_gate_and_up, LLAMA, {"tp": 2}, f"rank0.safetensors: {FC} differs"),
    Mutation(
        swap_gate_and_up_of_experts,
        MIXTRAL,
        EP,
        f"rank0.safetensors: {FC} differs from model.layers.1.block_sparse_moe.experts.0.w3.weight",
        "layer 1",
    ),
    Mutation(cut_qkv_as_one_block, LLAMA, {"tp": 2}, f"rank0.safetensors: {QKV} differs", "layer 1"),
    Mutation(cut_a_replicated_bias, LLAMA, {"tp": 2}, f"rank1.safetensors: {BIAS} differs"),
    Mutation(
        replicate_heads_in_turn,
        LLAMA,
        {"tp": 4},
        f"rank1.safetensors: {QKV} differs from model.layers.1.self_attn.k_proj.weight",
        "layer 1",
    ),
    Mutation(reverse_experts, MIXTRAL, EP, f"rank3.safetensors: {FC} differs"),
    Mutation(exchange_expert_blocks, MIXTRAL, EP, f"rank1.safetensors: {FC} differs"),
    Mutation(transpose_ranks, LLAMA, {"tp": 2, "pp": 2}, "rank1.safetensors: transformer.vocab_embedding.weight is"),
    Mutation(split_layers_one_off, LLAMA, {"pp": 2}, "rank0.safetensors: transformer.layers.2."),
    Mutation(write_the_head_from_the_embedding, LLAMA, {"tp": 2}, "rank0.safetensors: lm_head.weight differs"),
    Mutation(lose_the_scaled_rope, LLAMA, {"tp": 2}, "config.json: rotary_scaling=None", "layer 0"),
    Mutation(fill_the_padding, LLAMA, {"tp": 2}, "rank1.safetensors: lm_head.weight has padding that is not zero"),
    Mutation(flip_a_bit, LLAMA, {"tp": 2}, f"rank1.safetensors: {DENSE} differs"),
    Mutation(transpose_a_row_parallel_weight, LLAMA, {}, f"rank0.safetensors: {DENSE} differs", "layer 1"),
]


def mutated(mutation: Mutation, make_checkpoint: Make, folder: Path) -> tuple[SourceCheckpoint, ParallelSpec]:
    source, parallel = open_source(make_checkpoint(*mutation.options)), ParallelSpec(**mutation.degrees)
    convert_checkpoint(source.folder, folder, parallel)
    assert compare_bytes(source, folder, parallel, "none", Console(quiet=True)).faults == []
    mutation.write(folder, source)
    return source, parallel


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.write.__name__)
def test_bytes_name_the_tensor(make_checkpoint: Make, tmp_path: Path, mutation: Mutation) -> None:
    source, parallel = mutated(mutation, make_checkpoint, tmp_path)
    faults = compare_bytes(source, tmp_path, parallel, "none", Console(quiet=True)).faults
    assert any(mutation.fault in fault for fault in faults), faults


@pytest.mark.parametrize(
    "mutation", [each for each in MUTATIONS if each.part], ids=lambda mutation: mutation.write.__name__
)
def test_numbers_name_the_layer(make_checkpoint: Make, tmp_path: Path, mutation: Mutation) -> None:
    source, parallel = mutated(mutation, make_checkpoint, tmp_path)
    first = compare_layers(source, tmp_path, parallel).first_difference
    assert first is not None
    assert first.part == mutation.part


def layers_on_the_last_stages(layers: int, pp: int) -> list[range]:
    each, fewer = layers // pp, pp - layers % pp
    starts = [stage * each + max(0, stage - fewer) for stage in range(pp + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def experts_of_the_slowest_ranks(placed: Placed, tp_rank: int, parallel: ParallelSpec) -> Share:
    moe_ep_rank, moe_tp_rank = divmod(tp_rank, parallel.moe_tp)
    return share_of(placed, moe_tp_rank * parallel.moe_ep + moe_ep_rank if placed.rule.experts else tp_rank, parallel)


@pytest.mark.parametrize(
    ("place", "wrong", "options", "degrees", "fault"),
    [
        ("layout.placing.stage_layers", layers_on_the_last_stages, LLAMA, {"pp": 2}, "transformer.layers.2."),
        ("layout.cutting.share_of", experts_of_the_slowest_ranks, MIXTRAL, EP, f"rank1.safetensors: {FC} differs"),
    ],
    ids=["layers", "experts"],
)
def test_a_slip_in_the_sharder_is_not_shared_by_the_check(
    make_checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    wrong: Callable[..., Any],
    options: tuple[str, ...],
    degrees: dict[str, Any],
    fault: str,
) -> None:
    source, parallel = open_source(make_checkpoint(*options)), ParallelSpec(**degrees)
    with monkeypatch.context() as patched:
        patched.setattr(f"shardyard.builder.{place}", wrong)
        convert_checkpoint(source.folder, tmp_path, parallel)
    faults = compare_bytes(source, tmp_path, parallel, "none", Console(quiet=True)).faults
    assert any(fault in found for found in faults), faults
