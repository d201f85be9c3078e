"""How many connections clients may have, over both protocols together."""

from __future__ import annotations

__all__ = ["TELL_S", "Room"]

#: Clients of HTTP that are told at a time that there is no room; the others are cut off at once: they have descriptors
#: too. So are all of gRPC: it reports UNAVAILABLE then, while it tries again for ever where a GOAWAY tells it why.
_TOLD = 64
#: Seconds that one of them has to take it.
TELL_S = 1.0


class Room:
    """``most``: connections that there may be; None: any number. Who has entered must leave, who was told too."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.taken = self.told = 0

    def enter(self) -> bool:
        """Take a place; false: there is none."""
        if self.most is not None and self.taken >= self.most:
            return False
        self.taken += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.taken -= 1

    def tell(self) -> bool:
        """Take a place among those that are told so; false: none is left."""
        if self.told >= _TOLD:
            return False
        self.told += 1
        return True

    def was_told(self) -> None:
        """Give that place back."""
        self.told -= 1
