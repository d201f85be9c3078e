"""Sequences that wait, outside the scheduler, for their grammar to be compiled or their adapter to be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from shardyard.errors import ShardyardError
from shardyard.runtime.adapters.orders import LoadOrder
from shardyard.runtime.adapters.store import AdapterStore
from shardyard.runtime.guides.guided_answer import GuidedAnswer
from shardyard.runtime.request import Guide
from shardyard.runtime.sequence import Sequence

if TYPE_CHECKING:  # The parser is loaded when the first guide comes.
    from shardyard.runtime.guides.grammars import Grammar

__all__ = ["Compile", "Preparing", "needs_means"]

Compile: TypeAlias = "Callable[[Guide], Future[Grammar]]"


def needs_means(sequence: Sequence) -> bool:
    """Whether a sequence cannot run before it has a grammar or an adapter."""
    return sequence.request.guide is not None or sequence.request.lora_id is not None


@dataclass(eq=False)
class _Needs:
    sequence: Sequence
    grammar: Future[Grammar] | None


class Preparing:
    """What the waiting sequences need; asked for again and again by the leader. Used from one thread.

    ``compile`` starts to compile a guide; ``order`` gives an order to every rank.
    """

    def __init__(
        self,
        compile: Compile,
        adapters: AdapterStore,
        order: Callable[[LoadOrder], None],
    ) -> None:
        self._compile, self._adapters, self._order = compile, adapters, order
        self._waiting: dict[int, _Needs] = {}
        self._leases: dict[int, Future[int]] = {}

    def __len__(self) -> int:
        """Return how many sequences wait."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence that needs something; ``ready`` returns it."""
        guide = sequence.request.guide
        self._waiting[sequence.id] = _Needs(sequence, self._begin(guide) if guide else None)

    def ready(self) -> Iterator[tuple[Sequence, str | None]]:
        """Yield the sequences that have what they need, and forget them; yield those that cannot have it with why."""
        for id, needs in list(self._waiting.items()):
            try:
                if self._fulfil(needs):
                    del self._waiting[id]
                    yield needs.sequence, None
            except ShardyardError as error:
                yield needs.sequence, str(error)
            except Exception as error:  # Whatever it is, it is this request's, not the engine's.
                yield needs.sequence, f"{type(error).__name__}: {error}"

    def remove(self, sequence: Sequence) -> bool:
        """Forget a sequence that has ended, and its use of an adapter; tell whether it was waiting."""
        lease = self._leases.pop(sequence.id, None)
        if lease and sequence.request.lora_id is not None:
            self._adapters.give_back(sequence.request.lora_id, lease)
        return self._waiting.pop(sequence.id, None) is not None

    def _begin(self, guide: Guide) -> Future[Grammar]:
        try:
            return self._compile(guide)
        except Exception as error:
            failed: Future[Grammar] = Future()
            failed.set_exception(error)
            return failed

    def _fulfil(self, needs: _Needs) -> bool:
        sequence, id = needs.sequence, needs.sequence.request.lora_id
        if id is not None and sequence.id not in self._leases:
            lease = self._adapters.take(id, self._order)
            if lease is None:
                return False
            self._leases[sequence.id] = lease
        adapter = self._leases.get(sequence.id)
        if not all(future is None or future.done() for future in (needs.grammar, adapter)):
            return False
        if needs.grammar:
            sequence.guide = GuidedAnswer(needs.grammar.result(), sequence.request.end_ids)
        if adapter:
            sequence.adapter = adapter.result()
        return True
