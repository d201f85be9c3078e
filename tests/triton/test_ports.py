"""Ports: refusals before anything starts, and free ones."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import LaunchError
from shardyard.serve_spec import ServeSpec
from shardyard.triton.ports import FREE_RANGE, choose_ports


@given(st.data())
def test_zeros_become_free_ports_that_differ(data: st.DataObject) -> None:
    given_ports = {
        field: data.draw(st.sampled_from([0, port]))
        for field, port in zip(("http_port", "grpc_port", "metrics_port"), (9871, 9872, 9873), strict=True)
    }
    ports = choose_ports(ServeSpec(**given_ports))
    chosen = [ports.http, ports.grpc, ports.metrics]
    assert len(set(chosen)) == 3
    for wanted, port in zip(given_ports.values(), chosen, strict=True):
        assert port == wanted if wanted else port in FREE_RANGE


def test_the_same_port_twice() -> None:
    with pytest.raises(LaunchError, match=r"serve\.grpc_port is port 9871, and so is serve\.http_port"):
        choose_ports(ServeSpec(http_port=9871, grpc_port=9871))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_another_listens_on(address: str) -> None:
    with socket.socket() as other:
        other.bind((address, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} \(serve\.metrics_port\) is in use"):
            choose_ports(ServeSpec(http_port=0, grpc_port=0, metrics_port=port))


@pytest.mark.parametrize("host", ["not a host", "::1", ""])
def test_a_host_that_is_not_an_ipv4_address(host: str) -> None:
    with pytest.raises(LaunchError, match="is not an IPv4 address") as caught:
        choose_ports(ServeSpec(host=host))
    assert "127.0.0.1" in caught.value.fix


def test_a_name_becomes_an_address() -> None:
    assert choose_ports(ServeSpec(host="localhost", http_port=0, grpc_port=0, metrics_port=0)).address == "127.0.0.1"


def test_an_address_that_is_not_ours() -> None:
    host = "203.0.113.7"
    with pytest.raises(LaunchError, match=f"cannot be bound on {host}") as caught:
        choose_ports(ServeSpec(host=host, http_port=9871))
    assert "serve.host" in caught.value.fix
    with pytest.raises(LaunchError, match="no free port was found"):
        choose_ports(ServeSpec(host=host, http_port=0, grpc_port=0, metrics_port=0))
