"""Typed access to a config.json by a family's names for its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from shardyard.builder.families.rules import Family
from shardyard.errors import CheckpointError

__all__ = ["ConfigKeys"]

#: Sizes and numbers beyond these are no model's, and would not fit into floating point.
_MOST, _LARGEST = 1 << 62, 1e300
#: config.json's usual names of what HfConfig calls otherwise.
_USUAL = {
    "norm_epsilon": "rms_norm_eps",
    "qkv_bias": "attention_bias",
    "dense_bias": "attention_bias",
    "tied": "tie_word_embeddings",
    "experts_per_token": "num_experts_per_tok",
    "attn_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
}


class ConfigKeys:
    """Reads one file for one family; a wrong type is an error that names file, key and value."""

    def __init__(self, raw: Mapping[str, Any], path: Path, family: Family) -> None:
        self.path, self.family = path, family
        self.raw = {key: value for key, value in raw.items() if value is not None}
        self._nulls = {key for key, value in raw.items() if value is None}
        self._names = {**_USUAL, **family.keys}
        self._defaults = family.defaults
        derived = family.derive(self.raw)
        self._set = {**{key: value for key, value in derived.items() if value is not None}, **family.fixed}

    def name(self, key: str) -> str:
        """Return config.json's name of a field."""
        return self._names.get(key, key)

    def get(self, key: str, default: object = None) -> Any:
        """Return a field's value, unchecked; ``default`` where nothing gives one."""
        if key in self._set:
            return self._set[key]
        return self.raw.get(self.name(key), self._defaults.get(key, default))

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number above 0."""
        value = self._needed(key, default)
        if type(value) is not int or not 0 < value < _MOST:
            self.wrong(key, value, "a whole number above 0")
        return int(value)

    def count(self, key: str) -> int:
        """Return a whole number, 0 where nothing gives one."""
        value = self.get(key, 0)
        if type(value) is not int or not 0 <= value < _MOST:
            self.wrong(key, value, "a whole number")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number above 0."""
        value = self._needed(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
            self.wrong(key, value, "a number above 0")
        return float(value)

    def absent(self, key: str) -> bool:
        """Whether nothing gives a field: config.json has null for it, or neither it nor a default."""
        return self.get(key) is None or (key not in self._set and self.name(key) in self._nulls)

    def maybe_number(self, key: str) -> float | None:
        """Return a number above 0, None where the field is absent."""
        return None if self.absent(key) else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._needed(key, default)
        if not isinstance(value, bool):
            self.wrong(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, values: Mapping[str, str], default: str | None) -> str:
        """Return what ``values`` has for the name that config.json gives."""
        value = self._needed(key, default)
        if not isinstance(value, str) or value not in values:
            raise CheckpointError(
                f"{self.path}: {self.name(key)}={value!r} is not supported",
                why=f"supported: {', '.join(values)}",
                fix="use a checkpoint with one of these",
            )
        return values[value]

    def layers(self, key: str) -> tuple[int, ...]:
        """Return a list of layer numbers, empty where nothing gives one."""
        value = self.get(key, [])
        if not isinstance(value, list) or any(type(layer) is not int or layer < 0 for layer in value):
            self.wrong(key, value, "a list of layer numbers")
        return tuple(value)

    def wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        """Raise the error for a value that is not what it must be."""
        raise CheckpointError(
            f"{self.path}: {self.name(key)}={value!r} is not {wanted}",
            why="the model's shape and maths depend on it",
            fix="download the file again",
        )

    def _needed(self, key: str, default: object) -> Any:
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(
                f"{self.path} has no {self.name(key)}",
                why="the model's shape depends on it",
                fix="download the file again",
            )
        return value
