"""The command line: the only place that knows every stage and strings them together."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from shardyard.cli.parser import build_parser
from shardyard.console import Console
from shardyard.errors import ShardyardError, ToolchainError

__all__ = ["main", "run"]

#: Exit status after Ctrl-C, as shells report it.
INTERRUPTED = 130

#: Which extra brings a package that may be absent.
_EXTRAS = {
    "openvino": "cpu",
    "mpi4py": "cpu",
    "tritonclient": "serve",
    "grpc": "serve",
    "tokenizers": "serve",
    "jinja2": "serve",
    "locust": "perf",
    "gevent": "perf",
    "matplotlib": "perf",
}


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit status; errors of the tree pass through to the caller."""
    args = build_parser().parse_args(_join_two_word_verbs(argv))
    args.console = Console(quiet=getattr(args, "quiet", False), explain=getattr(args, "why", False))
    try:
        return int(args.verb(args) or 0)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise ToolchainError(
            f"the package {error.name} is not installed",
            why=f"this command needs what the extra {extra!r} brings",
            fix=f"pip install 'shardyard[{extra}]'",
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: run a command, turn errors into text and the exit code of their branch."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return run(arguments)
    except ShardyardError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        Console().error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        return 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        Console().error(
            f"unexpected {type(error).__name__}: {error}\n"
            "why: this is a fault in Shardyard\n"
            "fix: run again with --debug and report what it prints"
        )
        return ShardyardError.exit_code


def _join_two_word_verbs(argv: Sequence[str]) -> list[str]:
    """``perf compare A B`` is a verb of two words; the parser takes it as one."""
    if len(argv) > 1 and argv[0] == "perf" and argv[1] in ("compare", "ui"):
        return [f"{argv[0]} {argv[1]}", *argv[2:]]
    return list(argv)
