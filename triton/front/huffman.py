"""The Huffman code of header fields (RFC 7541, appendix B)."""

from __future__ import annotations

import functools

from shardyard.triton.front.frames import FrameError

__all__ = ["unpack_string"]

#: How many bits stand for each byte, and last for the end: the code is the one that has them in their order. 6*3: three
#: times 6.
_LENGTHS = """
    13 23 28*7 24 30 28*2 30 28*8 30 28*9 6 10*2 12 13 6 8 11 10*2 8 11 8 6*3 5*3 6*7 7 8 15 6 12 10 13 6 7*22 8
    7 8 13 19 13 14 6 15 5 6 5 6 5 6*3 5 7*2 6*3 5 6 7 6 5*2 6 7*5 15 11 14 13 28 20 22 20*2 22*3 23 22 23*5 24
    23 24*2 22 23 24 23*4 21 22 23 22 23*2 24 22 21 20 22*2 23*2 21 23 22*2 24 21 22 23*2 21*2 22 21 23 22 23*2
    20 22*3 23 22*2 23 26*2 20 19 22 23 22 25 26*3 27*2 26 24 25 19 21 26 27*2 26 27 24 21*2 26*2 28 27*3 20 24
    20 21 22 21*2 23 22*2 25*2 24*2 26 23 26 27 26*2 27*5 28 27*5 26 30
"""

#: The end of a string is filled with less than a byte of the code of the end, ones.
_END = 256


def _codes() -> dict[tuple[int, int], int]:
    """Return (length, bits) → byte."""
    lengths: list[int] = []
    for word in _LENGTHS.split():
        length, _, count = word.partition("*")
        lengths += [int(length)] * int(count or 1)
    codes, code, before = {}, 0, 0
    for symbol in sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= lengths[symbol] - before
        before = lengths[symbol]
        codes[before, code] = symbol
        code += 1
    return codes


_CODES = _codes()


@functools.lru_cache(maxsize=512)
def unpack_string(packed: bytes) -> bytes:
    """Return the string that is packed so.

    Raises:
        FrameError: it is none.
    """
    made, length, bits = bytearray(), 0, 0
    for byte in packed:
        for place in range(7, -1, -1):
            length, bits = length + 1, bits << 1 | byte >> place & 1
            symbol = _CODES.get((length, bits))
            if symbol is not None:
                if symbol == _END:
                    raise FrameError("a packed string ends inside")
                made.append(symbol)
                length = bits = 0
    if length > 7 or bits != (1 << length) - 1:
        raise FrameError("a packed string is cut off")
    return bytes(made)
