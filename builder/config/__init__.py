"""A Hugging Face config.json as types."""
