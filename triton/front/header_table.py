"""Reads blocks of header fields, which refer to those of blocks before them (HPACK, RFC 7541)."""

from __future__ import annotations

from collections import deque

from shardyard.triton.front.frames import FrameError
from shardyard.triton.front.huffman import unpack_string

__all__ = ["Field", "HeaderTable"]

Field = tuple[bytes, bytes]

#: Appendix A: what every table begins with.
_PAIRS = """
    :authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204
    :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= accept-encoding=gzip,_deflate
    accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control
    content-disposition content-encoding content-language content-length content-location content-range content-type
    cookie date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since
    last-modified link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after
    server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate
"""
_STATIC: list[Field] = []
for _pair in _PAIRS.encode().split():
    _name, _, _value = _pair.partition(b"=")
    _STATIC.append((_name, _value.replace(b"_", b" ")))

#: Bytes that the fields of the table may have, and what each costs besides its own.
_SIZE, _COST = 4096, 32

#: Bytes that the fields of one block may add up to: a few bytes may name a large field many times.
_MOST = 1 << 16


class HeaderTable:
    """One direction's decoder."""

    def __init__(self) -> None:
        self._recent: deque[Field] = deque()
        self._size, self._limit = 0, _SIZE
        self._block, self._at = b"", 0

    def read(self, block: bytes) -> list[Field]:
        """Return a block's fields.

        Raises:
            FrameError: it cannot be read, or is too much.
        """
        self._block, self._at = block, 0
        fields: list[Field] = []
        whole = 0
        try:
            while self._at < len(block):
                if field := self._field():
                    fields.append(field)
                    whole += len(field[0]) + len(field[1]) + _COST
                    if whole > _MOST:
                        raise FrameError("a block has too many fields")
        except IndexError:
            raise FrameError("a block of fields is cut off, or names one that is not there") from None
        return fields

    def _field(self) -> Field | None:
        first = self._block[self._at]
        if first & 0x80:
            return self._known(self._number(7))
        if first & 0xE0 == 0x20:
            self._shrink(self._number(5))
            return None
        kept = bool(first & 0x40)
        index = self._number(6 if kept else 4)
        name = self._known(index)[0] if index else self._string()
        field = name, self._string()
        if kept:
            self._keep(field)
        return field

    def _known(self, index: int) -> Field:
        if index == 0:
            raise FrameError("a field has no number 0")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._recent[index - len(_STATIC) - 1]

    def _keep(self, field: Field) -> None:
        self._recent.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _COST
        self._fit()

    def _shrink(self, limit: int) -> None:
        if limit > _SIZE:
            raise FrameError("a table is larger than allowed")
        self._limit = limit
        self._fit()

    def _fit(self) -> None:
        while self._size > self._limit:
            name, value = self._recent.pop()
            self._size -= len(name) + len(value) + _COST

    def _number(self, bits: int) -> int:
        most = (1 << bits) - 1
        value = self._block[self._at] & most
        self._at += 1
        if value < most:
            return value
        for shift in range(0, 28, 7):
            byte = self._block[self._at]
            self._at += 1
            value += (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise FrameError("a number is too long")

    def _string(self) -> bytes:
        packed = self._block[self._at] & 0x80
        size = self._number(7)
        text = self._block[self._at : self._at + size]
        self._at += size
        if len(text) < size:
            raise FrameError("a string is cut off")
        return unpack_string(text) if packed else text
