"""The engine's end of the shortcut: what goes to Triton, what to the front, and in which order."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import RequestError
from shardyard.model_repo.models.answer import text_arrays, text_of
from shardyard.model_repo.models.shortcut import ShortAnswer, Shortcut
from shardyard.shortcut import SOCKET, Record, RecordReader, opening

CALL = bytes(range(16))


class Front:
    """Takes the records of one engine."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(10)
        self._listener.bind(str(path))
        self._listener.listen()
        self._reader = RecordReader()
        self.engine: socket.socket | None = None

    def read(self) -> list[Record]:
        """Return what is there."""
        if self.engine is None:
            self.engine, _ = self._listener.accept()
            self.engine.setblocking(False)
        try:
            return list(self._reader.read(self.engine.recv(1 << 20)))
        except OSError:  # Nothing is there, or it has been closed.
            return []

    def close(self) -> None:
        """Go away."""
        self._listener.close()
        if self.engine:
            self.engine.close()


class Client:
    """Notes the texts and errors that pass Triton, each with the records that the front had then."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.got: list[tuple[Any, bool]] = []
        self.before: list[list[Record]] = []

    def send(self, arrays: Any, *, final: bool = False) -> None:
        """Note a response."""
        self._note(text_of(arrays), final)

    def fail(self, error: Exception | str) -> None:
        """Note an error."""
        self._note(error, True)

    def gone(self) -> bool:
        """Stay."""
        return False

    def _note(self, what: Any, final: bool) -> None:
        self.got.append((what, final))
        self.before.append(self._front.read())


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    monkeypatch.setenv(SOCKET, str(tmp_path / "s"))
    made = Front(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def shortcut(front: Front) -> Iterator[Shortcut]:
    made = Shortcut()
    assert made.open()
    yield made
    made.close()


@pytest.fixture
def client(front: Front) -> Client:
    return Client(front)


@pytest.fixture
def answer(client: Client, shortcut: Shortcut) -> ShortAnswer:
    return ShortAnswer(client, shortcut, CALL.hex(), 5)


def piece(text: bytes, *, last: bool = False) -> Record:
    return Record(CALL, 5, text, last)


def test_beginning_and_end_pass_triton(front: Front, client: Client, shortcut: Shortcut, answer: ShortAnswer) -> None:
    answer.open()
    answer.open()
    for text in (b"a", b"b"):
        answer.send(text_arrays(text))
    assert front.read() == []
    shortcut.flush()
    assert front.read() == [piece(b"a"), piece(b"b")]
    answer.send(text_arrays(b"c"))
    answer.send(text_arrays(b"d"), final=True)
    assert client.got == [(opening(CALL, 5), False), (b"d", True)]
    # All of the text was at the front before the last response left.
    assert client.before[1] == [piece(b"c"), piece(b"", last=True)]


def test_an_answer_of_one_piece_passes_triton_alone(front: Front, client: Client, answer: ShortAnswer) -> None:
    answer.send(text_arrays(b"a"), final=True)
    answer.open()
    assert client.got == [(b"a", True)]
    assert front.read() == []


def test_a_failure_follows_the_text(client: Client, answer: ShortAnswer) -> None:
    answer.send(text_arrays(b"a"))
    answer.fail("no more")
    assert client.got == [(opening(CALL, 5), False), ("no more", True)]
    assert client.before[1] == [piece(b"a"), piece(b"", last=True)]


def test_a_front_that_is_gone_is_no_silent_loss(
    front: Front, client: Client, shortcut: Shortcut, answer: ShortAnswer
) -> None:
    answer.send(text_arrays(b"a"))
    front.close()
    shortcut.flush()
    with pytest.raises(RequestError, match="front"):
        answer.send(text_arrays(b"b"))
    answer.fail("the front is gone")
    assert client.got[-1] == ("the front is gone", True)
    assert not shortcut.open()


@pytest.mark.parametrize("path", [None, "nobody"])
def test_without_a_front_there_is_no_way(path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOCKET, raising=False)
    if path:
        monkeypatch.setenv(SOCKET, str(tmp_path / path))
    assert not Shortcut().open()
