"""The Triton model ``tensorrt_llm_bls``: the ensemble's chain as a decoupled Python model."""

from __future__ import annotations

from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.chain_model import ChainModel
from shardyard.model_repo.models.client import Client

__all__ = ["TritonPythonModel"]


class TritonPythonModel(ChainModel):
    """Any number of responses for each request, as they come."""

    def answer(self, tensors: Arrays, client: Client, chain: Chain) -> None:
        """Send every response of the chain, then say that it was the last."""
        for arrays in chain.run(tensors, client):
            client.send(arrays)
        client.end()
