"""Loads adapters into a rank's places, beside its steps."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shardyard.errors import ShardyardError
from shardyard.runtime.adapters.orders import Loaded, LoadOrder
from shardyard.runtime.adapters.peft import read_peft
from shardyard.runtime.rank import RankModel

__all__ = ["AdapterLoader"]


class AdapterLoader:
    """Carries out one rank's orders on a thread of its own; steps go on meanwhile."""

    def __init__(self, model: RankModel) -> None:
        self._model = model
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shardyard-adapters")

    def start(self, order: LoadOrder) -> None:
        """Take an order; no step under way or to come may use the place before it is done."""
        self._pool.submit(self._load, order)

    def finished(self) -> list[Loaded]:
        """Return what was done since the last call, without waiting."""
        done = []
        while not self._done.empty():
            done.append(self._done.get())
        return done

    def close(self) -> None:
        """Drop what was not begun and end the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _load(self, order: LoadOrder) -> None:
        try:
            pool = self._model.adapters
            if pool is None:
                raise ValueError("the engine has no room for adapters")
            pool.write(order.place, read_peft(Path(order.folder)).share(pool.sites))
            self._model.prepare_adapters()
            self._done.put(Loaded(order.place))
        except Exception as error:  # Whatever it is, it is this adapter's fault and ends no world.
            known = isinstance(error, ShardyardError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self._done.put(Loaded(order.place, f"rank {self._model.world.rank} cannot load {order.folder}: {reason}"))
