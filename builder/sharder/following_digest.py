"""The digest of a file that is being written in any order: it follows behind the tensors that are finished.

The bytes are read back while they are still in the page cache, so that no second pass over the disk is needed; what
has been hashed is handed to the disk at once, which spreads the writing over the whole run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, Future

from shardyard.content_hash import ContentHash

__all__ = ["FollowingDigest"]

#: Bytes that are read back at a time.
CHUNK_BYTES = 1 << 20


class FollowingDigest:
    """One file. ``tensors`` are its (name, end) in the file's order, ``due`` the bytes still to be written of each.

    Everything before the first tensor is there already; so are tensors of which nothing is due.
    """

    def __init__(self, descriptor: int, tensors: list[tuple[str, int]], due: Mapping[str, int], pool: Executor) -> None:
        self._descriptor, self._tensors, self._pool = descriptor, tensors, pool
        self._due = dict(due)
        self._next = self._position = 0
        self._digest = ContentHash()
        self._lock = threading.Lock()
        self._running: Future[None] | None = None

    def wrote(self, name: str, count: int) -> None:
        """Note that ``count`` more bytes of a tensor are there; hash on, in the pool, when it is the file's next."""
        with self._lock:
            self._due[name] -= count
            if self._running is None and self._is_ready():
                self._running = self._pool.submit(self._follow)

    def result(self) -> str:
        """Return the digest of the whole file, as soon as all of it has been hashed.

        Raises:
            RuntimeError: something has not been written.
        """
        while True:
            with self._lock:
                running = self._running
                if running is None and not self._is_ready():
                    if self._next < len(self._tensors):
                        raise RuntimeError(f"tensor {self._tensors[self._next][0]} has not been written")
                    return self._digest.digest()
                if running is None:
                    running = self._running = self._pool.submit(self._follow)
            running.result()

    def _is_ready(self) -> bool:
        return self._next < len(self._tensors) and self._due.get(self._tensors[self._next][0], 0) <= 0

    def _follow(self) -> None:
        buffer = bytearray(CHUNK_BYTES)
        while True:
            with self._lock:
                if not self._is_ready():
                    self._running = None
                    return
                end = self._tensors[self._next][1]
                self._next += 1
            self._hash_to(end, memoryview(buffer))

    def _hash_to(self, end: int, buffer: memoryview) -> None:
        start = self._position
        while self._position < end:
            part = buffer[: min(len(buffer), end - self._position)]
            count = os.preadv(self._descriptor, [part], self._position)
            if not count:
                raise OSError(f"the file being written ends at byte {self._position}")
            self._digest.update(part[:count])
            self._position += count
        # Dirty pages are not dropped by this advice; their writing begins.
        os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
