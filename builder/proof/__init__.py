"""Proves rank files: byte by byte, then number by number against the unsharded reference."""
