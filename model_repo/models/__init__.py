"""The code of the repository's Python models."""
