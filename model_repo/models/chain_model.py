"""What the two models that run the ensemble's chain themselves have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.request_log import RequestLog
from shardyard.model_repo.models.triton_io import Settings, read_tensors
from shardyard.model_repo.unsupported import refuse_unsupported

__all__ = ["ChainModel"]


class ChainModel(ABC):
    """Serves any number of requests at once, each on a thread that mostly waits."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start to look after clients."""
        settings = Settings.read(args)
        Heartbeat(0, settings.name)
        self._known = settings.inputs()
        self._chain = self.make_chain()
        self._log = RequestLog(Log.of_launch(settings.name))
        self._log.log.event("loaded")

    def execute(self, requests: Sequence[Any]) -> None:
        """Start a thread for each request."""
        for request in requests:
            client = Client(request)
            try:
                check_parameters(request.parameters(), self._known)
                tensors = read_tensors(request)
                self.check(tensors)
            except Exception as error:
                self._log.refused(client.request_id, error)
                client.fail(error)
                continue
            threading.Thread(target=self._serve, args=(tensors, client), daemon=True).start()

    def finalize(self) -> None:
        """Stop to look after clients."""
        self._chain.close()
        self._log.log.event("unloaded")

    def make_chain(self) -> Chain:
        """Return the chain that this model runs."""
        return Chain()

    def check(self, tensors: Arrays) -> None:
        """Refuse requests that this model cannot answer.

        Raises:
            RequestError: the request is one of them.
        """
        refuse_unsupported(tensors)

    @abstractmethod
    def answer(self, tensors: Arrays, client: Client, chain: Chain) -> None:
        """Send the responses of ``chain``, the last one marked as such."""

    def _serve(self, tensors: Arrays, client: Client) -> None:
        try:
            self.answer(tensors, client, self._chain)
        except Exception as error:
            client.fail(error)
