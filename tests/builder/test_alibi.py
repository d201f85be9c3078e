"""ALiBi's slopes: the builder's and the reference's, written apart, are those of the paper."""

from __future__ import annotations

import pytest

from shardyard.builder.reference.alibi import slopes
from shardyard.builder.targets.alibi import alibi_slopes, penalties


@pytest.mark.parametrize(
    ("heads", "wanted"),
    [(1, [2**-8]), (2, [2**-4, 2**-8]), (8, [0.5**power for power in range(1, 9)]), (3, [2**-4, 2**-8, 2**-2])],
)
def test_the_papers(heads: int, wanted: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx(wanted)


@pytest.mark.parametrize("heads", [*range(1, 41), 71, 112])
def test_written_apart(heads: int) -> None:
    assert alibi_slopes(heads) == pytest.approx(slopes(heads))
    assert len(alibi_slopes(heads)) == heads


def test_plain_and_scaled() -> None:
    config = {"num_attention_heads": 2, "position_embedding_type": "alibi"}
    assert penalties(config, 0.25) == pytest.approx([2**-4, 2**-8])
    assert penalties(config | {"position_embedding_type": "alibi_with_scale"}, 0.25) == pytest.approx([2**-6, 2**-10])
    assert penalties(config | {"position_embedding_type": "rope_gpt_neox"}, 0.25) == ()
