"""What the requests are called that a chain makes for one of its own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from shardyard.calls import CALL, ENDED, TRACE

__all__ = ["InnerNames", "named_by_call", "named_by_id"]


class Asked(Protocol):
    """The request that the chain answers: its id, the call it came with, and where its client is in a trace."""

    request_id: str
    call: str
    trace: str


@dataclass(frozen=True)
class InnerNames:
    """Id and parameters of the inner requests, and of the request that asks the engine to ``stop`` them."""

    id: str
    parameters: Mapping[str, str]
    stop_id: str
    stop_parameters: Mapping[str, str]


def named_by_call(asked: Asked) -> InnerNames:
    """Return names for our own engine: the request keeps its id through all models, whoever else has the same.

    What ends is the call that it came with; without one (no front) it gets a call of its own.
    """
    call = asked.call or uuid.uuid4().hex
    return InnerNames(asked.request_id, _given({CALL: call, TRACE: asked.trace}), "", {ENDED: call})


def named_by_id(asked: Asked) -> InnerNames:
    """Return names for TensorRT-LLM's C++ backend, which knows requests by their id alone: one that nobody else has."""
    inner = str(uuid.uuid4())
    return InnerNames(inner, _given({CALL: asked.call, TRACE: asked.trace}), inner, {})


def _given(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value}
