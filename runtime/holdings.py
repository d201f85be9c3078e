"""What sequences hold of the key/value cache: taken, in common, copied, found again.

A full block is known by the tokens from the sequence's beginning to the block's end and by the adapter that read them:
its key is a hash (BLAKE2b, 128 bits) over the key of the block before and the block's tokens. Only blocks whose tokens
are final are published, so what is found is what the sequence would have computed itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.sequence import Sequence

__all__ = ["Holdings"]


class Holdings:
    """Gives sequences their blocks. ``reuse``: blocks whose content is wanted again are found and shared.

    ``reused`` and ``taken`` count blocks.
    """

    def __init__(self, allocator: BlockAllocator, *, reuse: bool = True) -> None:
        self.allocator, self.reuse = allocator, reuse
        self.reused = self.taken = 0

    def most_blocks(self, sequence: Sequence) -> int:
        """Blocks that the sequence and its future forks take at most; forks have the prompt's full blocks in common."""
        whole = self.allocator.needed(sequence.most_tokens)
        common = len(sequence.request.prompt) // self.allocator.block_tokens
        return whole + (sequence.width - 1) * (whole - common)

    def promised(self, running: Iterable[Sequence]) -> int:
        """Blocks that those who run may still take."""
        running = list(running)
        to_come = sum(self.most_blocks(sequence) - len(sequence.blocks) for sequence in running)
        # Of those who have an unfinished block in common, all but one will need a copy of it.
        writing = [sequence.blocks[at] for sequence in running if (at := self._writes_at(sequence)) is not None]
        return to_come + len(writing) - len(set(writing))

    def at_hand(self, sequence: Sequence) -> list[int]:
        """Return the blocks that a sequence without any could start with. At least one token is left to compute."""
        if not self.reuse or sequence.request.want_context_logits:
            return []
        return self.allocator.find(self._keys(sequence, len(sequence.tokens) - 1))

    def enter(self, sequence: Sequence) -> None:
        """Let a sequence that holds nothing start with what is at hand."""
        found = self.at_hand(sequence)
        self.allocator.share(found)
        sequence.blocks, sequence.past = found, len(found) * self.allocator.block_tokens
        sequence.published = len(found)
        sequence.reused_blocks += len(found)
        self.reused += len(found)

    def lacks(self, sequence: Sequence, end: int) -> int:
        """Return how many blocks ``hold`` would take."""
        at = self._writes_at(sequence)
        own = at is not None and self.allocator.holders(sequence.blocks[at]) > 1
        return max(0, self.allocator.needed(end) - len(sequence.blocks)) + own

    def hold(self, sequence: Sequence, end: int) -> list[int]:
        """Take the blocks for the sequence's tokens up to ``end``; return what must be copied, as ``StepPlan.copies``.

        Blocks that others hold too are full or have the sequence's next place in them; that one is replaced.
        """
        self._publish(sequence, sequence.past)
        fresh, copies = self.allocator.take(self.lacks(sequence, end)), []
        sequence.new_blocks += len(fresh)
        self.taken += len(fresh)
        at = self._writes_at(sequence)
        if at is not None and self.allocator.holders(sequence.blocks[at]) > 1:
            copies = [sequence.blocks[at], fresh[-1]]
            self.allocator.give_back([sequence.blocks[at]])
            sequence.blocks[at] = fresh.pop()
        sequence.blocks += fresh
        return copies

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give the child what the parent holds tokens in."""
        child.past, child.keys, child.published = parent.past, list(parent.keys), parent.published
        child.blocks = parent.blocks[: self.allocator.needed(parent.past)]
        self.allocator.share(child.blocks)

    def release(self, sequence: Sequence) -> None:
        """Take everything from the sequence. Its full blocks can be found again."""
        # What follows the newest token but one may be drafts.
        self._publish(sequence, min(sequence.past, len(sequence.tokens) - 1))
        self.allocator.give_back(sequence.blocks)
        sequence.blocks, sequence.past, sequence.published = [], 0, 0

    def _writes_at(self, sequence: Sequence) -> int | None:
        """Which of its blocks the sequence writes to next; None: one that it has not taken yet."""
        at = sequence.past // self.allocator.block_tokens
        return at if at < len(sequence.blocks) else None

    def _publish(self, sequence: Sequence, tokens: int) -> None:
        """Publish the full blocks among the first ``tokens`` tokens, which are final."""
        full = tokens // self.allocator.block_tokens
        if not self.reuse or full <= sequence.published:
            return
        keys = self._keys(sequence, tokens)
        for index in range(sequence.published, full):
            self.allocator.publish(sequence.blocks[index], keys[index])
        sequence.published = full

    def _keys(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """Return the keys of the full blocks among the first ``tokens`` tokens."""
        size, keys = self.allocator.block_tokens, sequence.keys
        for start in range(len(keys) * size, tokens - size + 1, size):
            before = keys[-1] if keys else repr(sequence.request.lora_id).encode()
            block = np.array(sequence.tokens[start : start + size], np.int32)
            keys.append(blake2b(block.tobytes(), key=before, digest_size=16).digest())
        return keys[: tokens // size]
