"""A rank's network a part at a time: embedding, each layer of each stage, head. One part is in memory at a time."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.targets.cpu import lazy_rank_arrays
from shardyard.errors import CheckpointError
from shardyard.runtime.collectives import join_all_reduce
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.names import EMBEDDING, FINAL_NORM, HEAD, POSITIONS
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import single_prompt
from shardyard.runtime.world import World

__all__ = ["LayerStream"]

Makers = Mapping[str, Callable[[], Array]]
_LAYER = re.compile(r"(transformer\.layers\.)(\d+)(\..*)")


@dataclass(frozen=True)
class _Part:
    """A part as a network of its own: the embedding is a first stage, a layer a middle one, the head a last one."""

    spec: NetworkSpec
    arrays: Makers
    file: int
    #: The number that its layer has in the rank file; in the network of its own it has number 0.
    layer: int = 0


class _OneStage(World):
    """A world whose stages are run one after the other by the same processes: nothing is sent between them."""

    given: Array

    def receive_hidden(self, tokens: int, width: int) -> Array:
        """Return what the part before gave."""
        return self.given

    def send_hidden(self, hidden: Array) -> None:
        """Nothing: the model keeps it."""


class LayerStream:
    """Runs the rank files of ``checkpoint`` over ``tp`` processes, which take every stage in turn.

    All ``tp`` processes make one and call the same methods. ``threads`` is a process's share of the cores.
    """

    def __init__(self, checkpoint: Path, tp: int, pp: int, prompts: Sequence[Sequence[int]], threads: int) -> None:
        self._checkpoint, self._pp, self._prompts = checkpoint, pp, prompts
        self.world = _OneStage(tp, 1)
        self._all_reduce = join_all_reduce(self.world.tp_comm) if tp > 1 else None
        self._settings = RankSettings.exact(-(-max(map(len, prompts)) // BLOCK_TOKENS), threads)

    def hidden_states(self) -> Iterator[Array]:
        """Yield what the embedding and then each layer gives, float32 [tokens of all prompts, hidden]."""
        hidden = None
        for stage in range(self._pp):
            spec, arrays = self._open(stage)
            parts = _layers(spec, arrays, self._file(stage))
            for part in [_embedding(spec, arrays), *parts] if stage == 0 else parts:
                hidden = np.concatenate(list(self._run(part, hidden)))
                yield hidden

    def logits(self, hidden: Array) -> Iterator[Array | None]:
        """Yield each prompt's logits, float32 [tokens, vocab], from the last layer's output; None beyond rank 0."""
        spec, arrays = self._open(self._pp - 1)
        names = [FINAL_NORM + ".weight", FINAL_NORM + ".bias", EMBEDDING if spec.tied else HEAD]
        chosen = {name: arrays[name] for name in names if name in arrays}
        part = _Part(replace(spec, layers=(), pp=2, stage=1), chosen, self._file(self._pp - 1))
        for share in self._run(part, hidden):
            shares = [share] if self.world.tp_comm is None else self.world.tp_comm.gather(share, root=0)
            yield np.concatenate(shares, axis=1) if shares else None

    def _open(self, stage: int) -> tuple[NetworkSpec, Makers]:
        return lazy_rank_arrays(self._checkpoint, self._file(stage), weights="float32")

    def _file(self, stage: int) -> int:
        return stage * self.world.tp + self.world.rank

    def _run(self, part: _Part, hidden: Array | None) -> Iterator[Array]:
        """Yield a part's output for each prompt, float32 [tokens, width]; its memory is given back at the end."""
        arrays = {name: make() for name, make in part.arrays.items()}
        try:
            model = RankModel(part.spec, arrays, self.world, self._settings, self._all_reduce)
        except KeyError as error:
            name = str(error.args[0]).replace("layers.0.", f"layers.{part.layer}.")
            raise CheckpointError(f"rank{part.file}.safetensors lacks {name}") from error
        start = 0
        for prompt in self._prompts:
            if hidden is not None:
                self.world.given = np.ascontiguousarray(hidden[start : start + len(prompt)])
            start += len(prompt)
            logits = model.run(single_prompt(prompt, BLOCK_TOKENS))
            output = model.hidden if logits is None else logits
            if output is not None:
                yield output.copy()
        del model, arrays
        gc.collect()
        # The allocator would keep what it got back for later; the next part needs blocks of other sizes.
        ctypes.CDLL(None).malloc_trim(0)


def _embedding(spec: NetworkSpec, arrays: Makers) -> _Part:
    chosen = {name: arrays[name] for name in (EMBEDDING, POSITIONS) if name in arrays}
    return _Part(replace(spec, layers=(), pp=2, stage=0), chosen, file=spec.tp_rank)


def _layers(spec: NetworkSpec, arrays: Makers, file: int) -> list[_Part]:
    """Return each layer of a stage as the only one of a stage in the middle of three."""
    found: list[dict[str, Callable[[], Array]]] = [{} for _ in spec.layers]
    for name, make in arrays.items():
        match = _LAYER.fullmatch(name)
        if match:
            found[int(match[2])][f"{match[1]}0{match[3]}"] = make
    return [
        _Part(replace(spec, layers=(layer,), pp=3, stage=1), own, file, local)
        for local, (layer, own) in enumerate(zip(spec.layers, found, strict=True))
    ]
