"""Fills a Triton model repository: typed model configurations and the models' Python code."""
