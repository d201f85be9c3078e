"""Names the call in the JSON of ``generate`` while it passes: there, Triton 2.51 makes no parameters of headers."""

from __future__ import annotations

import json

from shardyard.calls import CALL

__all__ = ["CallTag"]

_SPACES = b" \t\r\n"


class CallTag:
    """Puts a first member into a JSON object that comes in pieces. Triton takes the first of two with the same name.

    The body becomes longer by ``length`` bytes, whatever it is: what is no object gets spaces, and stays none.
    Without a ``call`` all stays as it is.
    """

    def __init__(self, call: str) -> None:
        self._member = json.dumps({CALL: call}).strip("{}").encode() if call else b""
        #: Bytes that are added: the member and a comma.
        self.length = len(self._member) + bool(call)
        self._left = self.length

    def put(self, piece: bytes) -> bytes:
        """Return a piece of the body as it passes on."""
        made = b""
        while self._left and (rest := piece.lstrip(_SPACES)):
            made += piece[: len(piece) - len(rest)]
            piece = rest
            if self._left == self.length and rest[:1] == b"{":
                made, piece = made + rest[:1] + self._take(self._member), rest[1:]
            else:
                last = b"," if self._left == 1 and rest[:1] != b"}" else b""
                made += self._take(last + b" " * (self._left - len(last)))
        return made + piece

    def end(self) -> bytes:
        """Return what is still to be added where the body has ended."""
        return self._take(b" " * self._left)

    def _take(self, added: bytes) -> bytes:
        self._left -= len(added)
        return added
