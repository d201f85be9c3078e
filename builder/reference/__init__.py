"""The unsharded reference: a decoder's forward pass in float32 numpy, straight from the Hugging Face checkpoint.

It shares no code with the sharder or the engines, so that a fault in one of them does not hide in the other: it reads
config.json and the tensors' names for itself. The families are data (``families``); what they differ in is one small
module each.
"""

from __future__ import annotations

from shardyard.builder.reference.model import Reference

__all__ = ["Reference"]
