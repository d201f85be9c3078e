"""Beam search: the likeliest answers of a request, found side by side on forked blocks of the cache."""
