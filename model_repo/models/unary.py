"""The Triton model ``ensemble_unary``: the ensemble's chain for clients that take one response, such as HTTP infer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.arrays import flag
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.triton_io import Settings, read_tensors

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """One response for each request, sent from the request's own thread: many are in flight in one process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start to look after clients."""
        self._known = Settings.read(args).inputs()
        self._chain = Chain()

    def execute(self, requests: Sequence[Any]) -> None:
        """Start a thread for each request."""
        for request in requests:
            client = Client(request)
            try:
                check_parameters(request.parameters(), self._known)
                tensors = read_tensors(request)
                if flag(tensors, "stream"):
                    raise RequestError(
                        "stream is true", "this model answers once", "send it to the model ensemble, which streams"
                    )
            except Exception as error:
                client.fail(error)
                continue
            threading.Thread(target=self._serve, args=(tensors, client), daemon=True).start()

    def finalize(self) -> None:
        """Stop to look after clients."""
        self._chain.close()

    def _serve(self, tensors: Arrays, client: Client) -> None:
        try:
            for arrays in self._chain.run(tensors, client):
                client.send(arrays, final=True)
        except Exception as error:
            client.fail(error)
