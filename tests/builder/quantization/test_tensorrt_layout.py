"""The layout of grouped weights against a loop over single numbers, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.builder.dtypes import BY_NAME
from shardyard.builder.quantization.nibbles import pack_nibbles, unpack_nibbles
from shardyard.builder.quantization.tensorrt_layout import from_tensorrt, to_tensorrt

#: The tables of the description, written out: which row of a block goes to each place, and the order within 32 bits.
ROWS = {
    4: [8 * group + 2 * pair + each for pair in range(4) for group in range(4) for each in (0, 1)],
    8: [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15],
}
WORDS = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def _codes(bits: int, out: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (out, columns)).astype(np.uint8)


def _by_single_numbers(codes: np.ndarray, bits: int, sm: int) -> bytes:
    """Place every number of codes [out, in] by itself, as the steps of the description say."""
    out, columns = codes.shape
    rows, words = ROWS[bits], WORDS[bits]
    turn = 1 if 90 <= sm < 120 else 16 // bits
    flat = []
    for block in range(out // turn):
        for tile in range(columns // 64):
            for each in range(turn):
                for place in range(64):
                    at = tile * 64 + place
                    source = at // len(rows) * len(rows) + rows[at % len(rows)]
                    flat.append(int(codes[block * turn + each, source]))
    ordered = [flat[first + place] for first in range(0, len(flat), len(words)) for place in words]
    if bits == 8:
        return bytes(ordered)
    return bytes(low | high << 4 for low, high in zip(ordered[::2], ordered[1::2], strict=True))


@pytest.mark.parametrize("sm", [80, 89, 90, 120])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_number_is_where_the_description_puts_it(bits: int, sm: int) -> None:
    codes = _codes(bits, 16, 128)
    written = to_tensorrt(codes, bits, BY_NAME["float16"], sm)
    assert written.shape == (128, 16 * bits // 16)
    assert written.tobytes() == _by_single_numbers(codes, bits, sm)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([4, 8]), st.sampled_from([80, 90]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_nothing_is_lost(bits: int, sm: int, out: int, columns: int, seed: int) -> None:
    codes = _codes(bits, 16 * out, 64 * columns, seed)
    for dtype in ("float16", "bfloat16"):
        assert np.array_equal(from_tensorrt(to_tensorrt(codes, bits, BY_NAME[dtype], sm), bits, sm), codes)


def test_nibbles_lie_low_half_first() -> None:
    assert pack_nibbles(np.array([[1, 2, 15, 0]], np.uint8)).tolist() == [[0x21, 0x0F]]
    assert unpack_nibbles(np.array([[0x21, 0x0F]], np.uint8)).tolist() == [[1, 2, 15, 0]]
