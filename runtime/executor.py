"""The executor: the engine's leader. Takes requests from any thread, runs the world's steps on a thread of its own."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from shardyard.busy import ENDING, QUEUE_FULL
from shardyard.errors import BusyError, LaunchError, RequestError, ShardyardError
from shardyard.runtime.adapters.folders import AdapterFolders
from shardyard.runtime.adapters.peft import AdaptedModel
from shardyard.runtime.adapters.sites import adapted_widths
from shardyard.runtime.adapters.store import AdapterStore
from shardyard.runtime.beams.checking import check_beams, check_blocks
from shardyard.runtime.engine_config import read_engine_config
from shardyard.runtime.guides.checking import check_guide
from shardyard.runtime.kv_cache import BLOCK_TOKENS, BlockAllocator
from shardyard.runtime.leader import Leader
from shardyard.runtime.loading import load_draft_model, load_rank
from shardyard.runtime.rank import RankModel
from shardyard.runtime.request import Guide, Limits, Output, Request
from shardyard.runtime.request_check import check_request
from shardyard.runtime.scheduler import Policy, Scheduler
from shardyard.runtime.sequence import OnOutput, Sequence
from shardyard.runtime.stats import Stats, stats_of
from shardyard.runtime.world import World

if TYPE_CHECKING:  # The parser is loaded when the first guide comes.
    from shardyard.runtime.guides.grammars import Grammar, Grammars

__all__ = ["Executor"]

#: Seconds between two looks at what other ranks tell while the engine is idle.
_LOOK = 0.25


class Executor:
    """An engine that answers requests. MPI rank 0 makes one; all other ranks run ``runtime.worker``.

    MPI, if the engine has more than one rank, is used from the executor's thread only. ``max_queue_size``: requests
    that may wait; 0 is no limit. ``tokenizer``: the folder with the model's tokenizer.json, for guided answers.
    ``lora_dir``: the folder of adapters, ``<id>/adapter_config.json``. ``kv_cache_reuse``: prompts that begin alike are
    computed once. ``batch_scheduler_policy``: see ``scheduler``. Returns when the engine is ready.

    Raises:
        ArtifactError: the engine folder is broken.
        ToolchainError: it was built for another machine or OpenVINO.
        LaunchError: the MPI world has another size than the engine.
    """

    def __init__(
        self,
        engine: Path,
        *,
        max_queue_size: int = 0,
        tokenizer: Path | None = None,
        lora_dir: Path | None = None,
        kv_cache_reuse: bool = True,
        batch_scheduler_policy: Policy = Policy.GUARANTEED_NO_EVICT,
    ) -> None:
        self.engine, self.config = engine, read_engine_config(engine)
        self.max_queue_size, self.tokenizer, self.lora_dir = max_queue_size, tokenizer, lora_dir
        self._grammars: Grammars | None = None
        self._adapters: AdapterFolders | None = None
        self.error: Exception | None = None
        config = self.config
        width = min(config.max_beam_width, config.max_batch_size)
        tokens = config.kv_blocks * BLOCK_TOKENS
        self.limits = Limits(config.vocab, config.max_seq_len, tokens, width, config.max_batch_size)
        self.scheduler = Scheduler(
            BlockAllocator(config.kv_blocks, BLOCK_TOKENS),
            config.max_batch_size,
            config.max_num_tokens,
            config.pp,
            policy=batch_scheduler_policy,
            reuse=kv_cache_reuse,
            prompt_lookup=config.cpu.speculative == "prompt_lookup",
        )
        self._ids = itertools.count(1)
        self._wake = threading.Condition()
        self._new: deque[Sequence] = deque()
        self._cancelled: set[int] = set()
        self._stopping = self._draining = False
        self._leader: Leader | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="shardyard-leader", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self.error:
            raise self.error

    def submit(self, request: Request, on_output: OnOutput) -> int:
        """Queue a request and return its id. ``on_output`` is called on the executor's thread and must be quick.

        The last output of a request has ``finished``; nothing comes after it.

        Raises:
            BusyError: the queue is full, or the engine is ending.
            RequestError: the request cannot be served, or the engine has stopped.
        """
        check_request(request, self.limits)
        check_beams(request, self.limits)
        self._check_means(request)
        width = max(request.sampling.beam_width, request.num_return_sequences)
        sequence = Sequence(next(self._ids), request, on_output, list(request.prompt), width=width)
        check_blocks(sequence, self.scheduler)
        with self._wake:
            if self._stopping or self.error:
                raise RequestError("the engine has stopped", why=str(self.error or "it was shut down"))
            if self._draining:
                raise BusyError(ENDING, why="it finishes open requests", fix="ask another one")
            if self.max_queue_size and self._queued() >= self.max_queue_size:
                raise BusyError(
                    f"{QUEUE_FULL}: {self.max_queue_size} requests wait",
                    why="the engine cannot keep up",
                    fix="try again later, or raise serve.max_queue_size",
                )
            self._new.append(sequence)
            self._wake.notify()
        return sequence.id

    def _check_means(self, request: Request) -> None:
        if request.guide:
            if self.tokenizer is None:
                raise RequestError("guided answers are not possible", why="the engine was started without a tokenizer")
            check_guide(request.guide)
        if request.lora_id is not None and self._adapters:
            self._adapters.check(request.lora_id)

    def add_adapter(self, id: int, weights: NDArray[Any], config: NDArray[Any]) -> None:
        """Take an adapter in TensorRT-LLM's tensors: ``lora_weights`` [products, width], ``lora_config`` [products, 3].

        Requests name it by ``id`` from now on. Nothing happens if there is an adapter of that id.

        Raises:
            RequestError: it does not fit the engine.
        """
        if self._adapters:
            self._adapters.add(id, weights, config)

    def cancel(self, id: int) -> None:
        """End a request; its last output says cancelled. Ids that are finished or unknown are ignored."""
        with self._wake:
            self._cancelled.add(id)
            self._wake.notify()

    def drain(self) -> None:
        """Refuse new requests from now on; those that were accepted go on."""
        self._draining = True

    @property
    def working_s(self) -> float:
        """Seconds that the leader's inference under way has taken so far; 0 between two."""
        drafting = self.scheduler.drafting.model
        models = [leader.model] if (leader := self._leader) else []
        return max((each.working_s for each in [*models, *([drafting.model] if drafting else [])]), default=0.0)

    def shutdown(self) -> None:
        """Cancel what is left, end all ranks and wait for the executor's thread. Safe to call again."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def stats(self) -> Stats:
        """Return what the engine is doing at this moment."""
        return stats_of(self.scheduler, self._leader, self._queued())

    def _queued(self) -> int:
        """Requests that wait for a place in the batch; new ones that will get one at the next step do not."""
        waiting = len(self.scheduler.waiting) + (len(self._leader.preparing) if self._leader else 0)
        free = 0 if waiting else self.scheduler.max_batch_size - len(self.scheduler.running)
        return waiting + max(0, len(self._new) - free)

    def _main(self) -> None:
        world = None
        try:
            world = World(self.config.tp, self.config.pp, self.config.cp)
            model = load_rank(self.engine, self.config, world)
            if self.config.cpu.speculative == "draft_model":
                self.scheduler.drafting.model = load_draft_model(self.engine, model.settings.threads)
            self._adapters = self._folders(model)
            store = AdapterStore(self._adapters, self.config.cpu.lora_adapters, world.size)
            self._leader = leader = Leader(model, self.scheduler, self._compile, store)
            self._ready.set()
            while self._take_orders(leader):
                leader.advance()
            leader.drop_all()
            world.close()
        except Exception as error:
            self._fail(error, world)
        finally:
            self._ready.set()
            if self._grammars:
                self._grammars.close()
            if self._adapters:
                self._adapters.close()

    def _folders(self, model: RankModel) -> AdapterFolders:
        config, fits = self.config, None
        if model.adapters:
            widths = adapted_widths(model.spec, config.kv_heads)
            fits = AdaptedModel(config.layers, widths, config.cpu.lora_max_rank)
        return AdapterFolders(self.lora_dir, fits)

    def _compile(self, guide: Guide) -> Future[Grammar]:
        """Start to compile a guide; the parser and the tokenizer are loaded when the first one comes."""
        if self._grammars is None:
            from shardyard.runtime.guides.grammars import Grammars

            self._grammars = Grammars(self.tokenizer or Path(), self.config.vocab)
        return self._grammars.compile(guide)

    def _take_orders(self, leader: Leader) -> bool:
        """Hand new requests and cancellations to the leader; sleep while there is nothing to do. False: stop."""
        with self._wake:
            while not (self._stopping or self._new or self._cancelled or leader.busy):
                # Ranks tell where their time went a moment after the last step.
                self._wake.wait(_LOOK if self.config.ranks > 1 else None)
                leader.take_times()
            new, self._new = self._new, deque()
            cancelled, self._cancelled = self._cancelled, set()
            for sequence in new:
                leader.add(sequence)
        for id in cancelled:
            leader.cancel(id)
        return not self._stopping

    def _fail(self, error: Exception, world: World | None) -> None:
        """End every request with the reason, then the world."""
        known = isinstance(error, ShardyardError)
        reason = str(error) if known else traceback.format_exc()
        with self._wake:
            self.error = error if known else LaunchError("the engine's leader failed", why=str(error))
            left = [*self._new, *(self._leader.sequences if self._leader else [])]
        for sequence in left:
            sequence.on_output(Output(sequence.id, [], True, "error", f"the engine has failed: {error}"))
        if world is not None:
            world.abort(reason)
