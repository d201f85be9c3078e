"""The key/value cache as blocks of tokens: who holds which."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["BLOCK_TOKENS", "BlockAllocator"]

#: Tokens per block, fixed by the CPU plugin's paged attention.
BLOCK_TOKENS = 32


class BlockAllocator:
    """Blocks 0 … total-1, each free or held, by one sequence or by several that have its tokens in common."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total, self.block_tokens = total, block_tokens
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.total - len(self._free)

    @property
    def available(self) -> int:
        """Blocks that ``take`` can give."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Return how many blocks ``tokens`` tokens take."""
        return -(-tokens // self.block_tokens)

    def shared(self, block: int) -> bool:
        """Whether several hold the block, so that none of them may write to it."""
        return self._holders[block] > 1

    def take(self, count: int) -> list[int]:
        """Return ``count`` blocks, held from now on by who asks. The caller looked at ``available`` first.

        Raises:
            ValueError: fewer are available.
        """
        if count > self.available:
            raise ValueError(f"{count} blocks wanted, {self.available} available")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Let one more hold blocks that are held.

        Raises:
            ValueError: one of them is not held; nothing is changed then.
        """
        blocks = self._check(blocks)
        for block in blocks:
            self._holders[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """Let one who held these blocks go. Those that nobody holds any more are free.

        Raises:
            ValueError: one of them is not held; nothing is changed then.
        """
        for block in self._check(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def _check(self, blocks: Iterable[int]) -> list[int]:
        blocks = list(blocks)
        if len(set(blocks)) != len(blocks) or not all(0 <= b < self.total and self._holders[b] for b in blocks):
            raise ValueError(f"blocks {blocks} are not all held")
        return blocks
