"""Which adapters lie in which place, and who uses them: the leader's view."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from shardyard.runtime.adapters.folders import AdapterFolders, unusable
from shardyard.runtime.adapters.orders import Loaded, LoadOrder

__all__ = ["AdapterStore"]


@dataclass(eq=False)
class _Held:
    place: int
    #: Answers of ranks that are still to come, and what went wrong on those that have answered.
    awaited: int
    errors: list[str] = field(default_factory=list)
    users: int = 0
    ready: Future[int] = field(default_factory=Future)


class AdapterStore:
    """Gives the engine's ``places`` to adapters. ``ranks`` answer an order each. Used from the leader's thread."""

    def __init__(self, folders: AdapterFolders, places: int, ranks: int) -> None:
        self._folders, self._ranks = folders, ranks
        self._free = list(range(places))
        self._held: OrderedDict[int, _Held] = OrderedDict()

    def take(self, id: int, order: Callable[[LoadOrder], None]) -> Future[int] | None:
        """Use an adapter: return its place, sooner or later. None: all places are in use; try again later.

        ``order`` gives an order to every rank. The future raises RequestError when a rank cannot load the adapter.
        """
        held = self._held.get(id)
        if held is None:
            place = self._room()
            if place is None:
                return None
            held = self._held[id] = _Held(place, self._ranks)
            order(LoadOrder(place, str(self._folders.path(id))))
        self._held.move_to_end(id)
        held.users += 1
        return held.ready

    def give_back(self, id: int, taken: Future[int]) -> None:
        """End the use that ``take`` began; the adapter stays in its place until that is needed for another."""
        held = self._held.get(id)
        if held and held.ready is taken:
            held.users -= 1

    def answer(self, loaded: Loaded) -> None:
        """Take a rank's answer to an order."""
        id, held = next((id, held) for id, held in self._held.items() if held.place == loaded.place)
        held.awaited -= 1
        held.errors += [loaded.error] if loaded.error else []
        if held.awaited:
            return
        if held.errors:
            del self._held[id]
            self._free.append(held.place)
            held.ready.set_exception(unusable(id, held.errors[0], "let every rank's host have the folder"))
        else:
            held.ready.set_result(held.place)

    def _room(self) -> int | None:
        """Return a free place, that of the adapter which was not used for the longest time if need be."""
        if self._free:
            return self._free.pop()
        oldest = next((id for id, held in self._held.items() if not held.users and held.ready.done()), None)
        return None if oldest is None else self._held.pop(oldest).place
