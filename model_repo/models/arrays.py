"""Reads the tensors of a request: one row, one value, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.errors import RequestError

__all__ = ["Tensors", "flag", "integer", "number", "row", "text", "texts"]

#: Name → array, with the batch dimension. What the request does not have is absent.
Tensors = Mapping[str, npt.NDArray[Any]]


def row(tensors: Tensors, name: str) -> npt.NDArray[Any] | None:
    """Return a tensor without its batch dimension, or None.

    Raises:
        RequestError: the batch is not of size 1, or there are no values.
    """
    array = tensors.get(name)
    if array is None:
        return None
    if array.ndim and array.shape[0] != 1:
        raise RequestError(
            f"{name} has a batch of {array.shape[0]}", "a request is one prompt", "send one request for each prompt"
        )
    if array.size == 0:
        raise RequestError(f"{name} is empty", "it has no elements", "leave it out, or give it a value")
    return array[0] if array.ndim else array


def _value(tensors: Tensors, name: str) -> Any | None:
    values = row(tensors, name)
    if values is None:
        return None
    if values.size != 1:
        raise RequestError(f"{name} has {values.size} values", "it takes one")
    return values.reshape(()).item()


def integer(tensors: Tensors, name: str, default: int = 0) -> int:
    """Return a whole number."""
    value = _value(tensors, name)
    return default if value is None else int(value)


def number(tensors: Tensors, name: str, default: float = 0.0) -> float:
    """Return a finite number.

    Raises:
        RequestError: it is infinite or not a number.
    """
    value = _value(tensors, name)
    if value is not None and not np.isfinite(value):
        raise RequestError(f"{name} is {value}", "it must be a finite number")
    return default if value is None else float(value)


def flag(tensors: Tensors, name: str, default: bool = False) -> bool:
    """Return a truth value."""
    value = _value(tensors, name)
    return default if value is None else bool(value)


def texts(tensors: Tensors, name: str) -> list[str]:
    """Return a list of strings; absent is empty.

    Raises:
        RequestError: one is not UTF-8.
    """
    values = row(tensors, name)
    return [] if values is None else [_decode(name, value) for value in values.reshape(-1).tolist()]


def text(tensors: Tensors, name: str) -> str | None:
    """Return a string, or None.

    Raises:
        RequestError: it is not UTF-8.
    """
    value = _value(tensors, name)
    return None if value is None else _decode(name, value)


def _decode(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8", f"byte {error.start} is 0x{value[error.start]:02x}") from None
