"""One weight table per model family. Every ``Family`` in a module of this folder is supported."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from shardyard.builder.families.rules import Family

__all__ = ["FAMILIES"]


def _find() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Family):
                yield value


#: Every supported family by the architecture that config.json names.
FAMILIES: dict[str, Family] = {family.architecture: family for family in _find()}
