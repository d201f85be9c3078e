"""Values of config.json that depend on each other or come in several forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.builder.config.keys import ConfigKeys
from shardyard.builder.dtypes import BY_NAME
from shardyard.errors import CheckpointError

__all__ = ["read_dtype", "read_end_ids", "read_experts_per_token", "read_head_dim", "read_kv_heads"]


def read_kv_heads(keys: ConfigKeys, heads: int) -> int:
    """Return the number of key/value heads; as many as there are query heads where nothing gives one.

    Raises:
        CheckpointError: the heads cannot be divided among them.
    """
    kv_heads = keys.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{keys.path}: {keys.name('num_key_value_heads')}={kv_heads} does not divide "
            f"{keys.name('num_attention_heads')}={heads}",
            why="each key/value head serves the same number of query heads",
            fix="download the file again",
        )
    return kv_heads


def read_head_dim(keys: ConfigKeys, hidden: int, heads: int) -> int:
    """Return the size of a head, hidden_size / heads where nothing gives one.

    Raises:
        CheckpointError: heads that do not divide the hidden size, or of an odd size.
    """
    if keys.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"{keys.path}: {keys.name('num_attention_heads')}={heads} does not divide "
            f"{keys.name('hidden_size')}={hidden}",
            why="the file gives no head_dim, so each head has hidden_size / num_attention_heads elements",
            fix="download the file again",
        )
    head_dim = keys.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise CheckpointError(
            f"{keys.path}: head_dim={head_dim} is odd",
            why="rotary embeddings turn pairs of elements",
            fix="download the file again",
        )
    return head_dim


def read_experts_per_token(keys: ConfigKeys, experts: int) -> int:
    """Return how many experts answer for a token; 0 without experts.

    Raises:
        CheckpointError: more than there are.
    """
    chosen = keys.size("experts_per_token") if experts else 0
    if chosen > experts:
        raise CheckpointError(
            f"{keys.path}: {keys.name('experts_per_token')}={chosen} is more than the {experts} experts",
            fix="download the file again",
        )
    return chosen


def read_dtype(raw: Mapping[str, Any], path: Path) -> str | None:
    """Return the name of the type of the weights; None where nothing gives one.

    Raises:
        CheckpointError: a type that is not supported.
    """
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in BY_NAME:
        raise CheckpointError(
            f"{path}: torch_dtype={value!r} is not supported",
            why=f"supported: {', '.join(BY_NAME)}",
            fix="save the checkpoint in one of these types",
        )
    return name


def read_end_ids(raw: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer.

    Raises:
        CheckpointError: something else than ids.
    """
    value = [] if raw.get("eos_token_id") is None else raw["eos_token_id"]
    ids = tuple(value) if isinstance(value, list) else (value,)
    if any(type(token) is not int or token < 0 for token in ids):
        raise CheckpointError(
            f"{path}: eos_token_id={value!r} is not a token id or a list of them", fix="download the file again"
        )
    return ids
