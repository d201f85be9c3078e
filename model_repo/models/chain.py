"""The chain of preprocessing, tensorrt_llm and postprocessing, called from inside a Triton model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from shardyard.busy import is_busy
from shardyard.errors import BusyError, RequestError
from shardyard.model_repo.ensemble import STEPS, Step
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.inner_names import InnerNames, named_by_call
from shardyard.model_repo.models.text_state import Follower
from shardyard.model_repo.tensors import SIDE_OUTPUTS

__all__ = ["Chain", "ChainError"]

#: Seconds between two looks whether clients are still there.
PERIOD = 0.1

#: The output of our own engine that says why an answer cannot go on (``tensors.py``).
_FAILURE = "failure"

_SIDE = frozenset(tensor.name for tensor in SIDE_OUTPUTS)


class ChainError(RequestError):
    """A model of the chain answered with an error; its text is the whole of it."""


class Chain:
    """Runs requests through the ensemble's steps, any number at once, each on the thread that iterates it.

    The three models and the way the tensors take are the ensemble's own table. A client that goes away ends its
    sequence: one thread looks after all clients and sends ``stop`` to the engine.

    Triton 2.51's stub can deadlock when a response reaches an iterator whose thread is still waking up for the one
    before. The engine sends a chunk only after the one before is acknowledged (``Follower``), so that does not happen.
    """

    #: The ensemble's steps that the chain takes.
    steps: tuple[Step, ...] = STEPS

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._clients: dict[Client, InnerNames] = {}
        self._stopping = threading.Event()
        threading.Thread(target=self._watch, name="shardyard-chain-watch", daemon=True).start()

    def close(self) -> None:
        """Stop to look after clients."""
        with self._changed:
            self._stopping.set()
            self._changed.notify()

    def run(self, tensors: Arrays, client: Client) -> Iterator[Arrays]:
        """Yield the tensors of the ensemble's responses.

        Raises:
            ChainError: one of the models refused the request or failed.
            BusyError: the engine cannot take it now.
        """
        preprocessing, engine, postprocessing = self.steps
        names = self.names(client)
        pool = {**tensors, **_call(preprocessing, tensors, names)}
        pool["_FOLLOWER"] = np.array([[Follower.MODEL]], dtype=np.int32)
        with self._changed:
            self._clients[client] = names
            self._changed.notify()
        try:
            for made in self.numbered(tensors, _stream(engine, pool, names)):
                side = {name: array for name, array in made.items() if name in _SIDE}
                yield {**_call(postprocessing, made, names), **side}
        finally:
            with self._changed:
                self._clients.pop(client, None)

    def names(self, client: Client) -> InnerNames:
        """Return what the requests are called that are made for a client's."""
        return named_by_call(client)

    def numbered(self, tensors: Arrays, answers: Iterable[Arrays]) -> Iterable[Arrays]:
        """Return the engine's answers as ``postprocessing`` takes them; this engine numbers its chunks itself."""
        return answers

    def _watch(self) -> None:
        while not self._stopping.wait(PERIOD):
            with self._changed:
                self._changed.wait_for(lambda: self._clients or self._stopping.is_set())
                clients = dict(self._clients)
            for client, names in clients.items():
                if client.gone():
                    with self._changed:
                        self._clients.pop(client, None)
                    _stop(self.steps[1], names)


def _stop(engine: Step, names: InnerNames) -> None:
    """Ask the engine to end a request. The lengths are there because the model requires them."""
    one = np.array([[1]], dtype=np.int32)
    tensors = [
        pb_utils.Tensor("input_lengths", one),
        pb_utils.Tensor("request_output_len", one),
        pb_utils.Tensor("stop", np.array([[True]])),
    ]
    request = pb_utils.InferenceRequest(
        model_name=engine.model,
        request_id=names.stop_id,
        requested_output_names=["output_ids"],
        inputs=tensors,
        parameters=dict(names.stop_parameters),
    )
    for _ in request.exec(decoupled=True):
        pass


def _call(step: Step, pool: Arrays, names: InnerNames) -> Arrays:
    return _outputs(step, _request(step, pool, names).exec())


def _stream(step: Step, pool: Arrays, names: InnerNames) -> Iterator[Arrays]:
    for answer in _request(step, pool, names).exec(decoupled=True):
        if outputs := _outputs(step, answer):
            yield outputs


def _request(step: Step, pool: Arrays, names: InnerNames) -> Any:
    inputs = [pb_utils.Tensor(name, pool[pooled]) for name, pooled in step.inputs.items() if pooled in pool]
    wanted = [*step.outputs, _FAILURE] if step in STEPS[1:2] else list(step.outputs)
    return pb_utils.InferenceRequest(
        model_name=step.model,
        request_id=names.id,
        requested_output_names=wanted,
        inputs=inputs,
        parameters=dict(names.parameters),
    )


def _outputs(step: Step, answer: Any) -> Arrays:
    """Return a response's tensors under the ensemble's names."""
    if answer.has_error():
        said = str(answer.error().message())
        raise (BusyError if is_busy(said) else ChainError)(said)
    tensors = {tensor.name(): np.array(tensor.as_numpy()) for tensor in answer.output_tensors()}
    if _FAILURE in tensors:
        raise ChainError(tensors[_FAILURE].item().decode())
    return {step.outputs[name]: array for name, array in tensors.items()}
