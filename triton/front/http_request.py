"""Where an HTTP/1.1 request's body ends, read from its head; heads that leave a doubt are refused.

Framing as RFC 9112, section 6. Two readers that find different ends see different requests: so h11 reads the head, what
it lets pass but others read otherwise is refused here, and Triton gets a head that was written anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

__all__ = ["Head", "HttpRefusal", "chunk_length", "read_head"]

_VERSIONS = (b"1.0", b"1.1")
_LENGTH, _CODING = b"content-length", b"transfer-encoding"

#: The line before a chunk: its length, and extensions of visible characters.
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")


@dataclass
class HttpRefusal(Exception):
    """The front answers by itself: a status, its phrase, and what the client is told."""

    status: int
    phrase: str
    why: str


@dataclass(frozen=True)
class Head:
    """A request's head: its first line, the target in it, its fields, and how many bytes follow; None: chunks do."""

    first: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None

    def data(self, more: int = 0) -> bytes:
        """Return the head as Triton gets it, for a body that has so many bytes ``more``."""
        length = b"%d" % ((self.length or 0) + more)
        fields = ((name, length if more and name.lower() == _LENGTH else value) for name, value in self.fields)
        return self.first + b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n"


def read_head(raw: bytes) -> Head:
    """Read a head, which ends with an empty line.

    Raises:
        HttpRefusal: it is not HTTP/1.1 or 1.0, or does not say where the body ends, or says it twice.
    """
    if b"\n" in (rest := raw.replace(b"\r\n", b"")) or b"\r" in rest:
        raise _bad("a line ends otherwise than with CR LF")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise _bad("a header goes on in a second line")
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw))
    reader.receive_data(raw)
    try:
        request = reader.next_event()
    except h11.RemoteProtocolError as error:
        raise _bad(f"not a request of HTTP/1.1: {error}") from None
    if not isinstance(request, h11.Request) or request.http_version not in _VERSIONS:
        raise _bad("not a request of HTTP/1.1")
    # As they came: h11 makes one of two lengths that are equal.
    names = [line.partition(b":")[0].lower() for line in raw.split(b"\r\n")[1:]]
    if names.count(_LENGTH) + names.count(_CODING) > 1:
        raise _bad("the body's length is said more than once")
    chunks = _CODING in names
    if chunks and request.http_version == b"1.0":
        raise _bad("chunks are HTTP/1.1's")
    first = b"%s %s HTTP/%s\r\n" % (request.method, request.target, request.http_version)
    length = None if chunks else int(dict(request.headers).get(_LENGTH, b"0"))
    return Head(first, request.target, tuple(request.headers.raw_items()), length)


def chunk_length(line: bytes) -> int:
    """Return how many bytes a chunk has, by the line before it; extensions are skipped.

    Raises:
        HttpRefusal: it is no number.
    """
    if not (match := _CHUNK.fullmatch(line)):
        raise _bad("a chunk's length is no number")
    return int(match[1], 16)


def _bad(why: str) -> HttpRefusal:
    return HttpRefusal(400, "Bad Request", why)
