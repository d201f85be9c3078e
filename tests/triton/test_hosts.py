"""Hosts and who runs where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from shardyard.errors import LaunchError, ToolchainError
from shardyard.triton.host_check import HostFacts, compare_hosts
from shardyard.triton.host_share import HostShare
from shardyard.triton.hosts import Host, Placement, parse_hosts, place, read_hostfile

HERE = "127.0.0.1"


def test_entries() -> None:
    assert parse_hosts(["a", "b:3"]) == [Host("a", 1), Host("b", 3)]


@pytest.mark.parametrize("entry", ["", ":2", "a:0", "a:x", "a:-1"])
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(LaunchError, match="is not a host"):
        parse_hosts([entry])


def test_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# the first\nnode1 slots=2  # here\n\nnode2\n")
    assert read_hostfile(file) == [Host("node1", 2), Host("node2", 1)]
    file.write_text("node1 slots=2\nnode2 slots=many\n")
    with pytest.raises(LaunchError, match="line 2"):
        read_hostfile(file)
    with pytest.raises(LaunchError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_ranks_fill_hosts_in_order() -> None:
    placement = place(4, [Host(HERE, 1), Host("x", 2), Host("y", 1)])
    assert placement.hosts == (HERE, "x", "x", "y")
    assert placement.elsewhere == {1, 2, 3}
    assert placement.ranks_by_host(4) == {HERE: [0], "x": [1, 2], "y": [3]}
    assert placement.segments(first=1) == [("x", 2), ("y", 1)]


def test_no_hosts_is_this_one() -> None:
    assert place(2, []) == Placement()
    assert place(2, []).elsewhere == frozenset()
    assert place(2, []).ranks_by_host(2) == {"": [0, 1]}


@pytest.mark.parametrize(
    ("hosts", "hint"),
    [
        ([Host(HERE, 1), Host("x", 2)], "take 3 ranks and the engine has 2"),
        ([Host(HERE, 1), Host(HERE, 1)], "named twice"),
        ([Host("192.0.2.77", 1), Host(HERE, 1)], "is not this host"),
        ([Host("no-such-host.invalid", 1), Host(HERE, 1)], "is unknown"),
    ],
)
def test_hosts_that_do_not_fit(hosts: list[Host], hint: str) -> None:
    with pytest.raises(LaunchError, match=hint):
        place(2, hosts)


FACTS = HostFacts("a", {"openvino": "1", "numpy": "2"}, "hash", {"rank0.engine": 5, "rank1.engine": 5})
SHARES = {"a": HostShare(("rank0.engine",)), "b": HostShare(("rank1.engine",))}


def test_equal_hosts_pass() -> None:
    compare_hosts(SHARES, {"a": FACTS, "b": dataclasses.replace(FACTS, name="b")})


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        ({"files": {"rank0.engine": 5}}, "no rank1.engine"),
        ({"files": {"rank1.engine": 4}}, "another rank1.engine: 4 bytes, 5 on a"),
        ({"config": ""}, "another config.json, or none"),
        ({"versions": {"openvino": "3", "numpy": "2"}}, "openvino 1 here, 3 there"),
    ],
)
def test_a_host_that_differs(changed: dict[str, object], hint: str) -> None:
    other = dataclasses.replace(FACTS, name="b", **changed)  # type: ignore[arg-type]
    with pytest.raises(LaunchError, match=r"^b ") as caught:
        compare_hosts(SHARES, {"a": FACTS, "b": other})
    assert hint in caught.value.why


def test_a_host_whose_clock_differs() -> None:
    other = dataclasses.replace(FACTS, name="b", clock=FACTS.clock + 1000)
    with pytest.raises(LaunchError, match="the clocks of a and b differ by 1000 s"):
        compare_hosts(SHARES, {"a": FACTS, "b": other})


def test_a_host_that_refuses() -> None:
    refusal = ("ToolchainError", "no GPU was found", "nvidia-smi", "install it")
    other = dataclasses.replace(FACTS, name="b", refusal=refusal)
    with pytest.raises(ToolchainError) as caught:
        compare_hosts(SHARES, {"a": FACTS, "b": other})
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("on b: no GPU was found", *refusal[2:])


def test_a_share_travels_as_words() -> None:
    share = HostShare(("rank1.engine", "rank3.engine"), (0, 2), None, 0.5)
    assert HostShare.of(json.loads(json.dumps(dataclasses.asdict(share)))) == share
