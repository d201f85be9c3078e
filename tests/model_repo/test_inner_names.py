"""Requests keep their ids through the chain, and each can be ended alone."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.calls import CALL, ENDED, TRACE
from shardyard.model_repo.models.inner_names import named_by_call, named_by_id


@dataclass
class Asked:
    """A request."""

    request_id: str = "7"
    call: str = ""
    trace: str = ""


def test_our_engine_sees_the_clients_id() -> None:
    names = named_by_call(Asked(call="front", trace="00-a"))
    assert (names.id, names.parameters) == ("7", {CALL: "front", TRACE: "00-a"})
    assert (names.stop_id, names.stop_parameters) == ("", {ENDED: "front"})


def test_two_clients_may_have_the_same_id() -> None:
    first, second = named_by_call(Asked()), named_by_call(Asked())
    assert first.id == second.id == "7"
    assert first.stop_parameters == {ENDED: first.parameters[CALL]}
    assert first.parameters[CALL] != second.parameters[CALL]
    assert TRACE not in first.parameters


def test_the_cpp_backend_needs_an_id_that_is_unique() -> None:
    first, second = named_by_id(Asked(trace="00-a")), named_by_id(Asked())
    assert first.id == first.stop_id != second.id
    assert (first.parameters, first.stop_parameters, second.parameters) == ({TRACE: "00-a"}, {}, {})
