"""Whether prompt and answer fit the engine."""

from __future__ import annotations

from shardyard.errors import RequestError

__all__ = ["check_lengths"]


def check_lengths(prompt: int, new: int, max_seq_len: int) -> None:
    """Check that prompt and answer, in tokens, fit the engine.

    Raises:
        RequestError: they do not.
    """
    if prompt >= max_seq_len:
        raise RequestError(
            f"the prompt has {prompt} tokens",
            f"the engine was built for max_seq_len={max_seq_len}, prompt and answer together",
            f"shorten it to at most {max_seq_len - 1} tokens",
        )
    if new < 1:
        raise RequestError(f"max_tokens is {new}", "an answer has at least one token", "ask for 1 or more")
    if prompt + new > max_seq_len:
        raise RequestError(
            f"max_tokens is {new} after a prompt of {prompt} tokens",
            f"together they exceed max_seq_len={max_seq_len}",
            f"ask for at most {max_seq_len - prompt}",
        )
