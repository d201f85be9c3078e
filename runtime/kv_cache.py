"""The key/value cache as blocks of tokens: who holds which."""

from __future__ import annotations

__all__ = ["BLOCK_TOKENS", "BlockAllocator"]

#: Tokens per block, fixed by the CPU plugin's paged attention.
BLOCK_TOKENS = 32


class BlockAllocator:
    """Blocks 0 … total-1, each free or held by one sequence."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total, self.block_tokens = total, block_tokens
        self._free = list(range(total - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return len(self._held)

    def needed(self, tokens: int) -> int:
        """Return how many blocks ``tokens`` tokens take."""
        return -(-tokens // self.block_tokens)

    def can_take(self, count: int) -> bool:
        """Whether ``count`` blocks are free."""
        return count <= len(self._free)

    def take(self, count: int) -> list[int]:
        """Return ``count`` free blocks, held from now on. The caller asked ``can_take`` first.

        Raises:
            ValueError: fewer are free.
        """
        if not self.can_take(count):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Free blocks.

        Raises:
            ValueError: one of them is not held; nothing is freed then.
        """
        if len(set(blocks)) != len(blocks) or not self._held.issuperset(blocks):
            raise ValueError(f"blocks {blocks} are not all held")
        self._held.difference_update(blocks)
        self._free += blocks
