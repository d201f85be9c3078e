"""The Triton model ``tensorrt_llm_bls``: the ensemble's chain as a decoupled Python model."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.triton_io import Settings, read_tensors

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Serves any number of requests at once, each on a thread that mostly waits."""

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
                client.send(arrays)
            client.end()
        except Exception as error:
            client.fail(error)
