"""Reading and writing that leaves the page cache as it was.

A checkpoint is larger than memory more often than not, and its conversion touches each byte once. Kept in the cache,
these bytes would push out what other programs need, and finding pages for them costs more than copying them. What is
in the cache already is used, and stays.
"""

from __future__ import annotations

import errno
import os

__all__ = ["read_uncached", "write_uncached"]

#: RWF_DONTCACHE of Linux 6.14 (include/uapi/linux/fs.h): pages leave the cache as soon as they are read or written.
_DONT_CACHE = 0x80


def read_uncached(descriptor: int, target: memoryview, position: int) -> int:
    """Read into ``target`` from ``position`` on; return the number of bytes, 0 at the file's end. Raises OSError."""
    try:
        return os.preadv(descriptor, [target], position, _DONT_CACHE)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return os.preadv(descriptor, [target], position)


def write_uncached(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of ``data`` at ``position``; the disk begins at once. Raises OSError."""
    while data:
        try:
            count = os.pwritev(descriptor, [data], position, _DONT_CACHE)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            count = os.pwritev(descriptor, [data], position)
            # This advice drops no page that still has to be written; it has it written.
            os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)
        data, position = data[count:], position + count
