"""Ranks, stages and slices: laws that hold for every grid."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardyard.builder.layout.ranks import file_count, pad, rank_index, stage_layers
from shardyard.spec import ParallelSpec

degrees = st.integers(1, 6)


@given(tp=degrees, cp=degrees, pp=degrees)
def test_ranks_are_numbered_tp_then_cp_then_pp(tp: int, cp: int, pp: int) -> None:
    parallel = ParallelSpec(tp=tp, cp=cp, pp=pp)
    ranks = [rank_index(rank, parallel) for rank in range(parallel.world_size)]
    assert [(rank.pp, rank.cp, rank.tp) for rank in ranks] == list(np.ndindex(pp, cp, tp))
    for rank in ranks:
        assert rank.file == rank.rank % tp + rank.rank // (tp * cp) * tp
    assert {rank.file for rank in ranks} == set(range(file_count(parallel)))


@given(layers=st.integers(1, 130), pp=st.integers(1, 16))
def test_stages_are_those_of_tensor_split(layers: int, pp: int) -> None:
    split = [part.tolist() for part in np.array_split(np.arange(layers), pp)]
    assert [list(stage) for stage in stage_layers(layers, pp)] == split


def test_the_references_example() -> None:
    assert [len(stage) for stage in stage_layers(31, 4)] == [8, 8, 8, 7]


@given(count=st.integers(1, 10_000), multiple=st.integers(1, 64))
def test_padding(count: int, multiple: int) -> None:
    assert pad(count, multiple) % multiple == 0
    assert 0 <= pad(count, multiple) - count < multiple
