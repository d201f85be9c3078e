"""One weight table per model family."""
