"""Every error a user can meet, as one tree.

::

    ShardyardError                    exit 1   base: what, why, what to do
    ├── UsageError                    exit 2   the command line
    │   └── PipelineError             exit 2   the pipeline file
    ├── InputError                    exit 3   what the stages are given on disk
    │   ├── CheckpointError           exit 3   a Hugging Face or unified checkpoint
    │   ├── ArtifactError             exit 3   a folder that a stage wrote
    │   └── ParityError               exit 3   rank files that do not equal their source
    ├── ToolchainError                exit 4   a missing, wrong or mismatched tool, library or machine
    ├── LaunchError                   exit 5   a server or MPI world that did not start or did not stay up
    │   ├── RankError                 exit 5   one rank died; carries its number and last lines
    │   ├── UnreachableError          exit 5   nobody took the question
    │   └── RequestError              exit 5   the endpoint refused or failed a request
    │       └── BusyError             exit 5   it cannot take the request now, and may later
    └── MeasurementError              exit 6   a measurement that missed its bar or cannot be trusted

Each error says *what* happened, *why* it cannot work, and what to do (*fix*). The command line prints the three and
ends with the branch's exit code; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BusyError",
    "CheckpointError",
    "InputError",
    "LaunchError",
    "MeasurementError",
    "ParityError",
    "PipelineError",
    "RankError",
    "RequestError",
    "ShardyardError",
    "ToolchainError",
    "UnreachableError",
    "UsageError",
]


class ShardyardError(Exception):
    """Base of the tree. ``str()`` gives the three parts on lines of their own."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        """Return what, why and fix, leaving out those that are empty."""
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n".join(parts)


class UsageError(ShardyardError):
    """The command line does not make sense."""

    exit_code = 2


class PipelineError(UsageError):
    """The pipeline file has a wrong key, value or combination."""


class InputError(ShardyardError):
    """Something on disk that a stage was given is not usable."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint is missing, broken, or of a kind that is not supported."""


class ArtifactError(InputError):
    """A stage's folder is missing, unfinished, or does not match its manifest."""


class ParityError(InputError):
    """Sharded weights do not reproduce the source checkpoint."""


class ToolchainError(ShardyardError):
    """A tool, library or machine is missing or does not match."""

    exit_code = 4


class LaunchError(ShardyardError):
    """A server or MPI world did not start, or did not stay up."""

    exit_code = 5


class RankError(LaunchError):
    """One rank of the world died. ``tail`` holds the last lines of its log."""

    def __init__(self, rank: int, what: str, why: str = "", fix: str = "", tail: str = "") -> None:
        super().__init__(what, why, fix)
        self.rank = rank
        self.tail = tail

    def __str__(self) -> str:
        """Return the three parts, then the rank's last lines."""
        text = super().__str__()
        return f"{text}\nlast lines of rank {self.rank}:\n{self.tail}" if self.tail else text


class UnreachableError(LaunchError):
    """The endpoint took no question: nobody listens there, or it has no room for one more client."""


class RequestError(LaunchError):
    """The endpoint refused a request or failed to answer it."""


class BusyError(RequestError):
    """The endpoint cannot take the request now: the queue is full, or it is ending. The same request may do later."""


class MeasurementError(ShardyardError):
    """A measurement missed its bar, or cannot be trusted."""

    exit_code = 6
