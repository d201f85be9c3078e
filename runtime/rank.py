"""RankModel: one rank's compiled network and its key/value cache.

The engine's executor and workers run it step by step. It also gives the logits of a whole prompt, for comparing rank
files with their source. All ranks of the world do this together, e.g. as ``mpirun -n 4 python -m mpi4py -m …``::

    world = World(tp=2, pp=2)                                           # this process's place in the MPI world
    spec, arrays = rank_arrays(checkpoint, world.rank, weights="float32")
    model = RankModel(spec, arrays, world, RankSettings.exact())
    logits = model.logits(prompt)          # last stage: float32 [tokens, this rank's share of the vocabulary]
                                           # other stages: None, their hidden states went to the next stage

Joining the last stage's shares along the second axis, in order of tp_rank, gives [tokens, vocab]; padding is cut off
already. ``model.hidden`` holds what this stage handed to the next. A prompt may have as many tokens as fit into
``kv_blocks`` · 32 and the network's ``max_positions``. With tp = pp = 1 it needs no MPI.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from shardyard.errors import ToolchainError
from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.cache_memory import allocate_caches
from shardyard.runtime.collectives import AllReduce, join_all_reduce
from shardyard.runtime.compiled_network import CompiledNetwork
from shardyard.runtime.context import ContextGroup
from shardyard.runtime.counters import Counters
from shardyard.runtime.graph import build_graph, fix_tokens
from shardyard.runtime.kv_cache import BLOCK_TOKENS
from shardyard.runtime.native.packing import is_mostly_packed, plain_arrays
from shardyard.runtime.native.products import Level, load_products
from shardyard.runtime.network import ComputeType, KvType, NetworkSpec
from shardyard.runtime.op_failure import raise_noted
from shardyard.runtime.rank_times import RankTimes
from shardyard.runtime.results import Best, best_of
from shardyard.runtime.step_inputs import keeps_own_caches, step_inputs
from shardyard.runtime.step_plan import StepPlan, single_prompt
from shardyard.runtime.world import World

__all__ = ["RankModel", "RankSettings"]

_PRECISIONS: dict[str, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "u8"}
#: Elements of an activation that share one scale when weights in whole numbers meet them; 0 leaves activations alone.
#: With weights in groups the plugin takes no more than a group.
_QUANTIZATION_GROUP = {"int8": 128, "int4": 64}


@dataclass(frozen=True)
class RankSettings:
    """How a rank computes. ``kv_blocks``: blocks of 32 tokens. ``quantize_activations``: with int8 and int4.

    ``products``: the level of the engine's own, which packed weights meet; None: the plugin's.
    """

    compute: ComputeType
    kv_cache: KvType
    kv_blocks: int
    threads: int = 1
    quantize_activations: bool = True
    products: Level | None = None

    @classmethod
    def exact(cls, kv_blocks: int = 64, threads: int = 1) -> RankSettings:
        """Return the settings for comparisons: float32 throughout, nothing quantized on the way."""
        return cls("float32", "float32", kv_blocks, threads, quantize_activations=False)


class RankModel:
    """One rank, ready to run steps. ``arrays`` are kept for as long as the model lives.

    ``all_reduce`` is the tensor-parallel group, where it was joined before; else the model joins it. ``adapters``:
    where they lie; steps without any run another network, which they cost nothing.

    Raises:
        ToolchainError: OpenVINO cannot compile this network for this CPU, or there is no memory for the cache.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        arrays: Mapping[str, NDArray[Any]],
        world: World,
        settings: RankSettings,
        all_reduce: AllReduce | None = None,
        adapters: AdapterPool | None = None,
    ) -> None:
        self.spec, self.world, self.settings = spec, world, settings
        self.hidden: NDArray[np.float32] | None = None
        self.all_reduce = all_reduce or (join_all_reduce(world.tp_comm) if spec.tp > 1 else None)
        self.context: ContextGroup | None = None
        if world.cp > 1:
            self.context = ContextGroup(world.cp, world.cp_rank, join_all_reduce(world.cp_comm))
        self.products = load_products(settings.products) if settings.products else None
        # Without a compiler, or to be exact, the plugin multiplies: it takes no packed weights.
        self.arrays, self.adapters = arrays if self.products else plain_arrays(arrays), adapters
        self.compiled = self._compile()
        self._caches = allocate_caches(self.compiled, settings.kv_blocks)
        self._network = CompiledNetwork(self.compiled, self._caches)
        self._single: CompiledNetwork | None = None
        if self._gains_by_fixed_shapes():
            self._single = CompiledNetwork(self._compile(caches=self._caches), self._caches)
        self._adapting: CompiledNetwork | None = None
        self._best: Best | None = None
        #: Seconds that the network has computed so far.
        self.compute_s = 0.0
        self.steps = 0
        self._computing_since: float | None = None

    @property
    def working_s(self) -> float:
        """Seconds that the inference under way has taken so far; 0 between two."""
        since = self._computing_since
        return 0.0 if since is None else time.perf_counter() - since

    def times(self) -> RankTimes:
        """Return where this rank's time has gone so far."""
        counters, world = sum((group.counters() for group in self._groups()), Counters()), self.world
        return RankTimes(
            steps=self.steps,
            compute_s=self.compute_s - counters.waiting_s - counters.moving_s,
            waiting_s=counters.waiting_s,
            moving_s=counters.moving_s,
            receiving_s=world.receiving_s,
            sending_s=world.sending_s,
            sums=counters.calls,
            sum_bytes=counters.bytes,
            sent_bytes=world.sent_bytes,
        )

    def _groups(self) -> list[AllReduce]:
        groups = [self.all_reduce, self.context.group if self.context else None]
        return [group for group in groups if group]

    def prepare_adapters(self) -> None:
        """Compile the network with adapters, if it is not: before the first step with one, from any one thread."""
        if self._adapting is None and self.adapters:
            weights = {name: ov.Tensor(array, shared_memory=True) for name, array in self.adapters.arrays.items()}
            self._adapting = CompiledNetwork(self._compile(self.adapters), {**self._caches, **weights})

    def _gains_by_fixed_shapes(self) -> bool:
        """Whether single tokens have a network of their own, of fixed shapes: that costs memory and pays little where
        the plugin holds weights, and layers that keep their caches to themselves cannot share them.
        """
        own_caches = keeps_own_caches(self.spec, split=self.context is not None)
        return self.products is not None and not own_caches and is_mostly_packed(self.arrays)

    def _compile(self, adapters: AdapterPool | None = None, caches: Mapping[str, Any] | None = None) -> Any:
        """Compile the network; with ``caches`` that for steps of a single token."""
        settings = self.settings
        quantized = _QUANTIZATION_GROUP.get(self.spec.weights, 0) if settings.quantize_activations else 0
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": settings.threads,
            "INFERENCE_PRECISION_HINT": _PRECISIONS[settings.compute],
            "KV_CACHE_PRECISION": _PRECISIONS[settings.kv_cache],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": quantized,
        }
        core = ov.Core()
        for joined in self._groups():
            joined.extend(core)
        if self.products:
            self.products.extend(core)
        all_reduce = self.all_reduce.node if self.all_reduce else None
        group = self.all_reduce.number if self.all_reduce else None
        graph = build_graph(self.spec, self.arrays, all_reduce, adapters, self.products, self.context, group, caches)
        if caches:
            fix_tokens(graph, 1)
        try:
            return core.compile_model(graph, "CPU", properties)
        except RuntimeError as error:
            raise ToolchainError(
                "OpenVINO could not compile the network for this CPU",
                why=str(error).strip().splitlines()[-1],
                fix="try engine.compute=float32 and engine.kv_cache=float32",
            ) from error

    def run(self, plan: StepPlan) -> NDArray[np.float32] | None:
        """Run one step; receive from the previous stage and send to the next as need be.

        Returns the logits, float32 [rows, vocab_valid], valid until the next run, on the last stage; else None.
        """
        share = self.context.share(plan) if self.context else None
        own = share.plan if share else plan
        inputs = step_inputs(self.spec, plan, share)
        if not self.spec.first:
            inputs["hidden"] = self.world.receive_hidden(len(own.tokens), self.spec.hidden)
        for cache in self._caches.values() if len(plan.copies) else ():
            cache.data[plan.copies[1::2]] = cache.data[plan.copies[::2]]
        network = self._network
        if self.adapters and len(plan.adapters):
            self.prepare_adapters()
            inputs |= self.adapters.step_inputs(own)
            network = self._adapting or network
        elif self._single and len(plan.tokens) == len(plan.samples) == 1:
            network = self._single
        output, *best = self._infer(network, inputs)
        if self.spec.last:
            self._best = (best[0], best[1]) if best else best_of(output)
            return output
        self.hidden = output.copy()
        self.world.send_hidden(self.hidden)
        return None

    def best(self) -> Best:
        """Return the largest logit of each row of the step that was run last, on the last stage."""
        if self._best is None:
            raise ValueError("this rank has no logits")
        return self._best

    def _infer(self, network: CompiledNetwork, inputs: dict[str, Any]) -> list[NDArray[Any]]:
        self._computing_since = started = time.perf_counter()
        try:
            outputs = network.infer(inputs)
        finally:
            self._computing_since = None
        raise_noted()
        self.compute_s += time.perf_counter() - started
        self.steps += 1
        return outputs

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32] | None:
        """Return the logits of all positions of one prompt, float32 [tokens, vocab_valid]; None before the last stage.

        Every rank of the world calls it with the same tokens. What the cache held before is overwritten.
        """
        logits = self.run(single_prompt(tokens, BLOCK_TOKENS))
        return None if logits is None else logits.copy()
