"""The Triton model ``ensemble_unary``: the ensemble's chain for clients that take one response, such as HTTP infer."""

from __future__ import annotations

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.arrays import flag
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.chain_model import ChainModel
from shardyard.model_repo.models.client import Client

__all__ = ["TritonPythonModel"]


class TritonPythonModel(ChainModel):
    """One response for each request, sent from the request's own thread: many are in flight in one process."""

    def check(self, tensors: Arrays) -> None:
        """Refuse to stream."""
        super().check(tensors)
        if flag(tensors, "stream"):
            raise RequestError(
                "stream is true", "this model answers once", "send it to the model ensemble, which streams"
            )

    def answer(self, tensors: Arrays, client: Client, chain: Chain) -> None:
        """Send the chain's one response."""
        for arrays in chain.run(tensors, client):
            client.send(arrays, final=True)
