"""Which adapters there are: those in the folder of the launch, and those that came with requests."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shardyard.errors import RequestError
from shardyard.runtime.adapters.peft import AdaptedModel, read_peft
from shardyard.runtime.adapters.sent import save_sent_adapter

__all__ = ["AdapterFolders", "unusable"]

#: Adapters that came with requests; the oldest goes, and has to be sent again.
MOST_SENT = 64


class AdapterFolders:
    """The adapters by id. An id's adapter never changes. Used from any thread.

    ``folder``: that of the launch, with ``<id>/adapter_config.json``. ``model``: None where the engine was built
    without adapters.
    """

    def __init__(self, folder: Path | None, model: AdaptedModel | None) -> None:
        self._folder, self._model = folder, model
        self._checked: set[int] = set()
        self._sent: list[int] = []
        self._spool: Path | None = None
        self._adding = threading.Lock()

    def path(self, id: int) -> Path:
        """Return where an adapter lies."""
        root = self._spool if id in self._sent and self._spool else self._folder
        return Path(root or "") / str(id)

    def check(self, id: int) -> None:
        """Look whether a request can have an adapter.

        Raises:
            RequestError: there is no such adapter, or it does not fit the engine.
        """
        if id in self._checked:
            return
        model = self._adapted(id)
        if not self._exists(id):
            why = f"{self.path(id)} is no folder" if self._folder else "the engine was launched without serve.lora_dir"
            raise unusable(id, why, "name an adapter that is there, or send it")
        try:
            read_peft(self.path(id)).check(model)
        except RequestError as error:
            raise _named(id, error) from None
        self._checked.add(id)

    def add(self, id: int, weights: NDArray[Any], config: NDArray[Any]) -> None:
        """Take an adapter in TensorRT-LLM's tensors (``sent``); nothing happens if there is one of that id.

        Raises:
            RequestError: it does not fit the engine.
        """
        model = self._adapted(id)
        with self._adding:
            if self._exists(id):
                return
            self._spool = self._spool or Path(tempfile.mkdtemp(prefix="shardyard-adapters-"))
            try:
                save_sent_adapter(self._spool / str(id), weights, config, model)
                read_peft(self._spool / str(id)).check(model)
            except RequestError as error:
                shutil.rmtree(self._spool / str(id), ignore_errors=True)
                raise _named(id, error) from None
            self._sent.append(id)
            for old in self._sent[:-MOST_SENT]:
                self._sent.remove(old)
                self._checked.discard(old)
                shutil.rmtree(self._spool / str(old), ignore_errors=True)

    def close(self) -> None:
        """Delete what came with requests."""
        if self._spool:
            shutil.rmtree(self._spool, ignore_errors=True)

    def _exists(self, id: int) -> bool:
        return id in self._sent or (self._folder is not None and self.path(id).is_dir())

    def _adapted(self, id: int) -> AdaptedModel:
        if self._model is None:
            raise unusable(id, "the engine was built without adapters", "build it with engine.lora.max_rank")
        return self._model


def unusable(id: int, why: str, fix: str) -> RequestError:
    """Return the refusal of an adapter."""
    return RequestError(f"adapter {id} cannot be used", why=why, fix=fix)


def _named(id: int, error: RequestError) -> RequestError:
    return unusable(id, "; ".join(filter(None, (error.what, error.why))), error.fix)
