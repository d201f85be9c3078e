"""The key/value cache as blocks of tokens: who holds which, and what else is still in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

__all__ = ["BLOCK_TOKENS", "BlockAllocator"]

#: Tokens per block, fixed by the CPU plugin's paged attention.
BLOCK_TOKENS = 32


class BlockAllocator:
    """Blocks 0 … total-1, each held by one sequence, by several that have its tokens in common, or by none.

    A full block may be published under a key that says what is in it. It can then be found until it is taken for
    something else, which is done with blocks that nobody holds, the least recently used first.
    """

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total, self.block_tokens = total, block_tokens
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        # Published blocks that nobody holds, the least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.total - self.available

    @property
    def available(self) -> int:
        """Blocks that ``take`` can give."""
        return len(self._free) + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Return how many blocks ``tokens`` tokens take."""
        return -(-tokens // self.block_tokens)

    def holders(self, block: int) -> int:
        """Return how many hold the block. If it is several, none of them may write to it."""
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """Return ``count`` blocks, held from now on by who asks. The caller looked at ``available`` first.

        Raises:
            ValueError: fewer are available.
        """
        if count > self.available:
            raise ValueError(f"{count} blocks wanted, {self.available} available")
        taken = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Let one more hold blocks that are held or published.

        Raises:
            ValueError: one of them is neither; nothing is changed then.
        """
        blocks = list(blocks)
        self._check(blocks, lambda block: self._holders[block] > 0 or block in self._keys)
        for block in blocks:
            self._idle.pop(block, None)
            self._holders[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """Let one who held these blocks, given in order, go. The last are the first to be taken for something else.

        Raises:
            ValueError: one of them is not held; nothing is changed then.
        """
        blocks = list(blocks)
        self._check(blocks, lambda block: self._holders[block] > 0)
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._idle[block] = None
            else:
                self._free.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Say what is in a block that is held and full. Where another block is known under the key, that one stays."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key], self._keys[block] = block, key

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Return the blocks published under these keys, up to the first key that has none."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._by_key[self._keys.pop(block)]
        return block

    def _check(self, blocks: list[int], good: Callable[[int], bool]) -> None:
        if len(set(blocks)) != len(blocks) or not all(0 <= block < self.total and good(block) for block in blocks):
            raise ValueError(f"blocks {blocks} are not all held")
