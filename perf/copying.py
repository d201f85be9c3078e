"""A load whose answers copy from their prompts, as summaries do, with checkpoints that answer so.

A checkpoint's head is made from its embedding: after a token comes always the same other one, so that answers walk
along one long circle of tokens. Attention and MLPs have their full size and add next to nothing to that. A document
has pieces of the circle in any order, and what the answer will say is partly in it: how much (coverage), and in how
long runs, are what summaries are described by (extractive fragments: Grusky et al. 2018, arXiv:1804.11283).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shardyard.runtime.engine_file import map_arrays

__all__ = ["Circle", "Summary", "make_copying"]

#: What of the layers' outputs is left.
_WHISPER = 0.01
#: Special tokens and single bytes are not on the circle.
_FIRST = 262


@dataclass(frozen=True)
class Summary:
    """A prompt and the answer that a checkpoint of the circle gives to it."""

    prompt: list[int]
    answer: list[int]


class Circle:
    """All tokens of a vocabulary in a random order, each followed by the next."""

    def __init__(self, vocab: int, seed: int = 0) -> None:
        self.order: NDArray[np.int64] = _FIRST + np.random.default_rng(seed).permutation(vocab - _FIRST)

    def walk(self, start: int, count: int) -> list[int]:
        """Return the tokens from place ``start`` on."""
        found: list[int] = self.order[np.arange(start, start + count) % len(self.order)].tolist()
        return found

    def summary(self, document: int, answer: int, run: int, coverage: float, seed: int) -> Summary:
        """Return a document of so many tokens or a few more, and an answer that copies ``coverage`` of itself from it.

        It copies ``run`` tokens at a stretch, in another order than they stand there.
        """
        random = np.random.default_rng(seed)
        start, period = int(random.integers(len(self.order))), round(run / coverage)
        pieces = [self.walk(start + at, run) for at in range(1, answer + 1, period)]
        while sum(map(len, pieces)) < document:
            # What the answer leaves out, from further on.
            pieces.append(self.walk(start + answer + int(random.integers(len(self.order) - 2 * answer)), run))
        shuffled = [token for index in random.permutation(len(pieces)) for token in pieces[index]]
        return Summary([*shuffled, *self.walk(start, 1)], self.walk(start + 1, answer))


def make_copying(source: Path, folder: Path, circle: Circle, wrong: float = 0.0) -> None:
    """Write the checkpoint ``source`` with a head that walks along the circle; a share of its steps goes ``wrong``.

    The head must not be tied to the embedding.
    """
    _, arrays = map_arrays(source / "model.safetensors")
    head = np.array(arrays["lm_head.weight"])
    embedding = arrays["model.embed_tokens.weight"].astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    follower = np.roll(circle.order, -1)
    random = np.random.default_rng(1)
    missing = random.choice(len(follower), int(wrong * len(follower)), replace=False)
    follower[missing] = follower[random.permutation(missing)]
    head[:] = 0
    head[follower] = embedding[circle.order].astype(head.dtype)
    quiet = ("o_proj.weight", "down_proj.weight")
    changed = {
        name: (array.astype(np.float32) * _WHISPER).astype(array.dtype) if name.endswith(quiet) else array
        for name, array in arrays.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(changed | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    for path in source.glob("*.json"):
        shutil.copy(path, folder)
