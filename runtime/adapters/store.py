"""The leader's view of the adapters: which there are, which lie in which place, and who uses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from shardyard.errors import RequestError
from shardyard.runtime.adapters.orders import Loaded, LoadOrder
from shardyard.runtime.adapters.peft import AdaptedModel, read_peft

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
    """The adapters of ``folder``, one per id: ``folder/<id>/adapter_config.json``. An id's files never change.

    ``model`` and ``places``: what the engine was built for; None and 0 where it takes no adapters. ``ranks`` answer an
    order each.
    """

    def __init__(self, folder: Path | None, model: AdaptedModel | None, places: int, ranks: int) -> None:
        self._folder, self._model, self._ranks = folder, model, ranks
        self._free = list(range(places))
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._checked: set[int] = set()

    def check(self, id: int) -> None:
        """Look whether a request can have an adapter; called from any thread.

        Raises:
            RequestError: there is no such adapter, or it does not fit the engine.
        """
        if id in self._checked:
            return
        if self._model is None:
            raise _refusal(id, "the engine was built without adapters", "build it with engine.lora.max_rank")
        if self._folder is None:
            raise _refusal(id, "the engine was launched without a folder of adapters", "set serve.lora_dir")
        if not self._path(id).is_dir():
            raise _refusal(id, f"{self._path(id)} is no folder", "name an adapter that is there")
        try:
            read_peft(self._path(id)).check(self._model)
        except RequestError as error:
            raise _refusal(id, "; ".join(filter(None, (error.what, error.why))), error.fix) from None
        self._checked.add(id)

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
            order(LoadOrder(place, str(self._path(id))))
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
            held.ready.set_exception(_refusal(id, held.errors[0], "let every rank's host have the folder"))
        else:
            held.ready.set_result(held.place)

    def _room(self) -> int | None:
        """Return a free place, that of the adapter which was not used for the longest time if need be."""
        if self._free:
            return self._free.pop()
        oldest = next((id for id, held in self._held.items() if not held.users and held.ready.done()), None)
        return None if oldest is None else self._held.pop(oldest).place

    def _path(self, id: int) -> Path:
        return Path(self._folder or "") / str(id)


def _refusal(id: int, why: str, fix: str) -> RequestError:
    return RequestError(f"adapter {id} cannot be used", why=why, fix=fix)
