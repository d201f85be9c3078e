"""The first thing that runs in each task of a Slurm step: it becomes the program of its own rank.

``python -m shardyard.triton.step_entry --ranks=0-0 PROGRAM ARGS… --ranks=1-3 PROGRAM ARGS…``. Slurm's own way, a file
of programs, cuts long lines and has quotes of its own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from shardyard.triton.rank_entry import own_rank

__all__ = ["own_program"]

_RANKS = re.compile(r"--ranks=(\d+)-(\d+)")


def own_program(rank: int, words: Sequence[str]) -> list[str]:
    """Return the words between the mark whose ranks hold ``rank`` and the next mark."""
    program: list[str] = []
    mine = False
    for word in words:
        if found := _RANKS.fullmatch(word):
            mine = int(found[1]) <= rank <= int(found[2])
        elif mine:
            program.append(word)
    return program


if __name__ == "__main__":
    own = own_program(own_rank(), sys.argv[1:])
    os.execvp(own[0], own)
