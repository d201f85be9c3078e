"""Checkpoints on the Hugging Face hub, or on a server with its URL layout: listed, downloaded, checked, streamed."""
