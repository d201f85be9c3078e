from __future__ import annotations

from collections.abc import Iterator

from shardyard import errors
from shardyard.errors import RankError, ShardyardError


def tree(root: type[ShardyardError]) -> Iterator[type[ShardyardError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = {line.split()[-3]: int(line.split()[-1]) for line in _lines() if "exit" in line}
    assert drawn == {error.__name__: error.exit_code for error in tree(ShardyardError)}


def _lines() -> Iterator[str]:
    """Yield ``Name exit code`` of each line of the drawing."""
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if len(words) >= 3 and words[0].endswith("Error") and words[1] == "exit":
            yield " ".join(words[:3])


def test_every_error_is_exported() -> None:
    assert {error.__name__ for error in tree(ShardyardError)} == set(errors.__all__)


def test_text_has_what_why_fix_and_tail() -> None:
    text = str(RankError(3, "rank 3 died", "signal 9", "look at the log", tail="last line"))
    assert text.splitlines() == [
        "rank 3 died",
        "why: signal 9",
        "fix: look at the log",
        "last lines of rank 3:",
        "last line",
    ]
