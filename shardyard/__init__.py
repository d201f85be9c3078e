"""Shardyard: from a Hugging Face checkpoint to a load-tested, sharded Triton endpoint."""

__version__ = "0.1.0"
