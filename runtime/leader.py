"""The leader's side of the world's steps: plan, run, choose tokens, tell the requests' owners."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from shardyard.runtime.adapters.loading import AdapterLoader
from shardyard.runtime.adapters.orders import LoadOrder
from shardyard.runtime.adapters.store import AdapterStore
from shardyard.runtime.beams.beams import Beams
from shardyard.runtime.choosing import choose_for
from shardyard.runtime.deadlines import Deadlines, too_late
from shardyard.runtime.preparing import Compile, Preparing, needs_means
from shardyard.runtime.rank import RankModel
from shardyard.runtime.rank_times import RankTimes
from shardyard.runtime.request import FinishReason, Output
from shardyard.runtime.results import Floats, StepResult, gather_result, pack_result
from shardyard.runtime.sampler import log_probability
from shardyard.runtime.scheduler import Scheduler, Step
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.siblings import Siblings

__all__ = ["Leader"]

#: Seconds between two looks at what the waiting requests need, while nothing else runs.
_PREPARING_NAP = 0.0005


class Leader:
    """Runs steps, one at a time or, with pipeline stages, one per stage. Used from one thread.

    ``compile`` starts to compile a guide; ``adapters``: those that requests may name.
    """

    def __init__(self, model: RankModel, scheduler: Scheduler, compile: Compile, adapters: AdapterStore) -> None:
        self.model, self.world, self.scheduler = model, model.world, scheduler
        self._adapters, self._loader = adapters, AdapterLoader(model)
        self.preparing = Preparing(compile, adapters, self._order)
        self.prompt_tokens = self.generated_tokens = self.draft_tokens = self.accepted_tokens = 0
        #: Where each rank's time went, by rank; the leader's own is asked for when it is wanted.
        self.times = {rank: RankTimes() for rank in range(self.world.size)}
        self._sequences: dict[int, Sequence] = {}
        self._deadlines = Deadlines()
        # Steps whose tokens are still to come, oldest first, with this rank's own share of the result if it has one.
        self._under_way: deque[tuple[Step, Floats | None]] = deque()

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences or self._under_way)

    @property
    def sequences(self) -> list[Sequence]:
        """The unfinished requests."""
        return list(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """Take a request."""
        self._sequences[sequence.id] = sequence
        self._deadlines.add(sequence)
        if sequence.width > 1:
            (Beams if sequence.request.sampling.beam_width > 1 else Siblings)(sequence, self.scheduler)
        (self.preparing if needs_means(sequence) else self.scheduler).add(sequence)

    def cancel(self, id: int) -> None:
        """End a request; its blocks are free at once. Unknown ids are ignored."""
        sequence = self._sequences.get(id)
        if sequence:
            self._finish(sequence, Output(id, [], True, "cancelled"))

    def drop_all(self) -> None:
        """Cancel every request and receive what is still under way."""
        for id in list(self._sequences):
            self.cancel(id)
        while self._under_way:
            self._collect()
        self._loader.close()

    def advance(self) -> None:
        """Start the next step if one is possible and a stage is free, else wait for the oldest's tokens."""
        for id in self._deadlines.passed():
            if late := self._sequences.get(id):
                self._finish(late, too_late(late))
        self._admit()
        step = self.scheduler.next_step() if len(self._under_way) < self.world.pp else None
        if step:
            self._start(step)
        if self._under_way and (not step or len(self._under_way) >= self.world.pp):
            self._collect()
        elif not step:
            time.sleep(_PREPARING_NAP)
        self.take_times()

    def _admit(self) -> None:
        """Give the scheduler the sequences that have their grammar and adapter."""
        for loaded in [*self._loader.finished(), *self.world.receive_loaded()]:
            self._adapters.answer(loaded)
        for sequence, problem in self.preparing.ready():
            if problem is None:
                self.scheduler.add(sequence)
            else:
                self._finish(sequence, Output(sequence.id, [], True, "error", problem))

    def _order(self, order: LoadOrder) -> None:
        self.world.send_load(order)
        self._loader.start(order)

    def take_times(self) -> None:
        """Take in what the other ranks have told about their time."""
        self.times |= self.world.received_times()

    def _start(self, step: Step) -> None:
        self.world.send_plan(step.plan)
        before = self.model.compute_s
        logits = self.model.run(step.plan)
        self.scheduler.pace.observe(self.model.compute_s - before, step.prompts, step.drafted)
        if len(step.plan.samples):
            own = (
                None
                if logits is None
                else pack_result(logits, self.model.best(), step.plan, self.model.spec.vocab_start)
            )
            self._under_way.append((step, own))
        else:
            self.scheduler.ran(step)

    def _collect(self) -> None:
        """Wait for the oldest step's result and give each of its rows' sequences its token."""
        step, own = self._under_way.popleft()
        result = gather_result(self.world, self.model.spec, step.plan, own)
        full_row = {int(row): index for index, row in enumerate(step.plan.full)}
        for row, (sequence, place) in enumerate(step.context, len(step.rows)):
            if self._alive(sequence) and not sequence.generated:
                with self._blamed(sequence):
                    sequence.keep_context(place, result.full[full_row[row]])
        agrees = True
        for row, (sequence, draft) in enumerate(zip(step.rows, step.drafts, strict=True)):
            agrees = draft < 0 or (agrees and self._judge(sequence, draft))
            if agrees and self._alive(sequence):
                index = full_row.get(row)
                self._extend(sequence, result, row, None if index is None else result.full[index])
        self.scheduler.ran(step)

    def _alive(self, sequence: Sequence) -> bool:
        siblings = sequence.siblings
        return sequence.id in self._sequences and (siblings is None or sequence in siblings.sequences)

    def _judge(self, sequence: Sequence, draft: int) -> bool:
        """Note whether the token that was chosen last was the one drafted."""
        accepted = sequence.tokens[-1] == draft and self._alive(sequence)
        if sequence.acceptance:
            sequence.acceptance.judge(accepted)
        self.draft_tokens += 1
        self.accepted_tokens += accepted
        return accepted

    def _extend(self, sequence: Sequence, result: StepResult, row: int, logits: Floats | None) -> None:
        """Choose the sequence's next token."""
        with self._blamed(sequence):
            if logits is None:
                token = int(result.best[row])
                if not np.isfinite(result.best_logits[row]):
                    raise ValueError("the logits are not finite")
                self._emit(sequence, token, sequence.append(token), None, None)
            elif sequence.beams:
                self._emit_all(sequence, sequence.beams.take(sequence, logits))
            else:
                parting = sequence.siblings is not None and sequence.width > 1
                for one in sequence.siblings.parted() if sequence.siblings and parting else [sequence]:
                    self._choose(one, logits)

    @contextmanager
    def _blamed(self, sequence: Sequence) -> Iterator[None]:
        """What goes wrong inside ends this request and no other."""
        try:
            yield
        except Exception as error:
            self._finish(sequence, Output(sequence.id, [], True, "error", f"{type(error).__name__}: {error}"))

    def _choose(self, sequence: Sequence, logits: Floats) -> None:
        """Choose the next token from its logits, float32 [vocab]."""
        request = sequence.request
        if request.want_context_logits and not sequence.generated and not sequence.index:
            sequence.keep_context(len(request.prompt) - 1, logits)
        token = choose_for(sequence, logits)
        log_probs = [log_probability(logits, token)] if request.want_log_probs else None
        chosen_from = logits[None].copy() if request.want_generation_logits else None
        self._emit(sequence, token, sequence.append(token), log_probs, chosen_from)
        sequence.context = None

    def _emit(
        self,
        sequence: Sequence,
        token: int,
        reason: FinishReason | None,
        log_probs: list[float] | None,
        logits: Floats | None,
    ) -> None:
        if reason == "end_id":
            tokens, log_probs, logits = [], [] if log_probs else None, None
        else:
            tokens = [token]
        self.generated_tokens += len(tokens)
        output = Output(
            sequence.id,
            tokens,
            reason is not None,
            reason,
            log_probs=log_probs,
            index=sequence.index,
            context_logits=sequence.context,
            generation_logits=logits,
        )
        if reason:
            self._finish(sequence, output)
        else:
            sequence.on_output(output)

    def _emit_all(self, sequence: Sequence, outputs: list[Output]) -> None:
        """Give the owner the answers of a search that is over."""
        for output in outputs:
            self.generated_tokens += len(output.tokens)
            if output.finished:
                self._finish(sequence, output)
            else:
                sequence.on_output(output)

    def _finish(self, sequence: Sequence, output: Output) -> None:
        """Forget the request, free its blocks, and give its owner the last output, whatever the owner does with it.

        Where other answers to the prompt are still being made, only this one ends.
        """
        several = sequence.beams or sequence.siblings
        if sequence.siblings and not output.error and output.finish_reason != "cancelled":
            self.scheduler.remove(sequence)
            if sequence.siblings.leave(sequence):
                sequence.on_output(replace(output, finished=False, figures=sequence.figures))
                return
        del self._sequences[sequence.id]
        if not self.preparing.remove(sequence):
            for one in several.sequences if several else [sequence]:
                self.scheduler.remove(one)
        self.prompt_tokens += len(sequence.request.prompt)
        try:
            sequence.on_output(replace(output, figures=sequence.figures))
        except Exception:  # The owner is gone; there is nobody to tell.
            return
