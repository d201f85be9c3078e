"""The table of acknowledgements, between two real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shardyard.model_repo.models.acknowledge import SLOTS, Acknowledger, Board


@pytest.fixture
def board() -> Board:
    return Board()


def test_nothing_has_been_seen_at_first(board: Board) -> None:
    assert not board.used
    assert board.seen(1) == 0


def test_chunks_are_counted(board: Board) -> None:
    other = Acknowledger()
    for chunk in range(3):
        other.acknowledge(board.channel, 5, chunk)
    assert board.seen(5) == 3
    assert board.used


def test_streams_that_share_a_slot_do_not_mix(board: Board) -> None:
    other = Acknowledger()
    other.acknowledge(board.channel, 5, 7)
    other.acknowledge(board.channel, 5 + SLOTS, 0)
    assert board.seen(5 + SLOTS) == 1
    assert board.seen(5) == 0


def test_from_another_process(board: Board) -> None:
    code = (
        "import sys; from shardyard.model_repo.models.acknowledge import Acknowledger; "
        "Acknowledger().acknowledge(int(sys.argv[1]), 3, 1)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(board.channel)], check=True, timeout=60)
    assert board.seen(3) == 2


def test_a_channel_that_cannot_be_opened_is_left_alone(board: Board) -> None:
    read, write = os.pipe()
    try:
        other = Acknowledger()
        for channel in ((2**22 - 1) << 20, os.getpid() << 20 | read):
            other.acknowledge(channel, 1, 1)
    finally:
        os.close(read)
        os.close(write)
    assert not board.used
