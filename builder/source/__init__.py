"""The source: a Hugging Face checkpoint on disk, read strictly and never changed."""
