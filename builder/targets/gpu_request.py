"""What is asked of a GPU build, and the refusal of what cannot work or would waste the machine, before it is rented."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.builder.targets.gpu_model import GpuModel
from shardyard.builder.targets.gpu_networks import network_problem
from shardyard.builder.targets.gpu_refusals import CHECKS
from shardyard.builder.targets.limits import Budget, budgets, tightest
from shardyard.builder.targets.trtllm_flags import Value, requested_flags
from shardyard.errors import PipelineError
from shardyard.machines import Machine, find_machine
from shardyard.spec import Pipeline
from shardyard.toolchains import ToolChain, choose_toolchain

__all__ = ["GpuRequest", "make_request"]


@dataclass(frozen=True)
class GpuRequest:
    """One build: the model, the machine, the tool chain, the flags, and the memory of every rank."""

    pipeline: Pipeline
    model: GpuModel
    machine: Machine
    toolchain: ToolChain
    flags: dict[str, Value]
    budgets: tuple[Budget, ...]

    @property
    def image(self) -> str:
        """The image that a container starts from: engine.image, else the pin's."""
        return self.pipeline.engine.image or self.toolchain.image

    @property
    def ranks(self) -> int:
        """Number of engines."""
        return self.pipeline.parallel.world_size

    @property
    def tightest(self) -> Budget:
        """The rank that decides what fits."""
        return tightest(list(self.budgets))

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache is to hold: engine.kv_cache_tokens, else a full batch of the longest sequences."""
        engine = self.pipeline.engine
        return engine.kv_cache_tokens or engine.max_batch_size * engine.max_seq_len

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing and no reason to refuse."""
        config, engine, found = self.model.config, self.pipeline.engine, []
        longest = config.get("max_position_embeddings")
        if longest and engine.max_seq_len > longest * _rope_factor(config.get("rotary_scaling")):
            found.append(f"engine.max_seq_len={engine.max_seq_len} is beyond max_position_embeddings={longest}")
        if self.machine.gpus and self.machine.gpus % self.ranks:
            found.append(f"{self.machine.gpus} GPUs cannot be shared out evenly among replicas of {self.ranks} ranks")
        if engine.max_num_tokens > _MOST_TOKENS:
            found.append(
                f"engine.max_num_tokens above {_MOST_TOKENS} gains nothing and may exceed TensorRT's tensor size"
            )
        if self.pipeline.parallel.tp > 1 and str(self.machine.link).startswith("PCIe"):
            found.append(
                f"{self.machine.name} links its GPUs by PCIe alone: tp={self.pipeline.parallel.tp} will be slow"
            )
        return found


#: trtllm-build itself advises against more.
_MOST_TOKENS = 16384
#: Rope scalings whose max_position_embeddings counts the factor already.
_SCALED_ALREADY = ("su", "longrope", "llama3")


def make_request(pipeline: Pipeline, model: GpuModel) -> GpuRequest:
    """Put a build together, and refuse what cannot work.

    Raises:
        PipelineError: the machine, tool chain or a flag is unknown, or the request cannot work; it names the reason
            and what would be possible.
    """
    machine = find_machine(pipeline.engine)
    toolchain = choose_toolchain(pipeline.engine.toolchain, machine.gpu.sm)
    flags = requested_flags(pipeline, model)
    block = max(1, int(flags["tokens_per_block"]))
    ranks = budgets(model, pipeline.parallel, pipeline.engine, machine, block)
    request = GpuRequest(pipeline, model, machine, toolchain, flags, tuple(ranks))
    problems = [problem for check in (network_problem, *CHECKS) if (problem := check(request))]
    if problems:
        first, more = problems[0], [problem.what for problem in problems[1:]]
        raise PipelineError(first.what + (f" (and: {'; '.join(more)})" if more else ""), first.why, first.fix)
    return request


def _rope_factor(scaling: dict[str, object] | None) -> float:
    """Return what trtllm-build multiplies max_position_embeddings by."""
    if not scaling or scaling.get("rope_type", scaling.get("type")) in _SCALED_ALREADY:
        return 1.0
    factor = scaling.get("factor", 1.0)
    return float(factor) if isinstance(factor, int | float) else 1.0
