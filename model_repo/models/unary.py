"""The Triton model ``ensemble_unary``: the ensemble's chain for clients that take one response, such as HTTP infer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.arrays import flag
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.prompts import check_parameters
from shardyard.model_repo.models.triton_io import FINAL, Settings, error_response, read_tensors, response

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
            sender = request.get_response_sender()
            try:
                check_parameters(request.parameters(), self._known)
                tensors = read_tensors(request)
                if flag(tensors, "stream"):
                    raise RequestError(
                        "stream is true", "this model answers once", "send it to the model ensemble, which streams"
                    )
            except Exception as error:
                sender.send(error_response(error), flags=FINAL)
                continue
            threading.Thread(target=self._serve, args=(tensors, sender), daemon=True).start()

    def finalize(self) -> None:
        """Stop to look after clients."""
        self._chain.close()

    def _serve(self, tensors: Arrays, sender: Any) -> None:
        try:
            for arrays in self._chain.run(tensors, sender):
                sender.send(response(arrays), flags=FINAL)
        except Exception as error:
            sender.send(error_response(error), flags=FINAL)
