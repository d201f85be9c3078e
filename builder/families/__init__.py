"""One weight table per model family."""

from __future__ import annotations

from shardyard.builder.families.llama import LLAMA
from shardyard.builder.families.qwen2 import QWEN2
from shardyard.builder.families.rules import Family

__all__ = ["FAMILIES"]

#: Every supported family by the architecture that config.json names.
FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA, QWEN2)}
