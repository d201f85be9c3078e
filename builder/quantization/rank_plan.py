"""RankPlan: everything that convert writes for a source, quantized or not, and the config.json beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shardyard.builder.layout.cutting import CuttingPlan, make_cutting_plan
from shardyard.builder.layout.unified_config import unified_config
from shardyard.builder.quantization.kept import Kept, cache_scales, keep_quantized, with_made
from shardyard.builder.quantization.rank_file import LAYOUT_KEY
from shardyard.builder.quantization.tensorrt_layout import layout_of
from shardyard.builder.source.checkpoint import SourceCheckpoint
from shardyard.errors import CheckpointError
from shardyard.machines import find_machine
from shardyard.spec import ParallelSpec, Pipeline

__all__ = ["DEFAULT_SM", "RankPlan", "make_rank_plan", "pipeline_plan"]

#: The architecture whose layout grouped weights have where no GPU is named: Ampere's, which is Ada's too.
DEFAULT_SM = 80
#: TensorRT-LLM's names of the key/value cache's types that need scales.
_CACHES = {"int8": "INT8", "fp8": "FP8"}


@dataclass(frozen=True)
class RankPlan:
    """A cutting plan, and what it was made for. ``source`` gives the weights that the rank files stand for.

    ``kept`` is None where the rank files' weights are plain; ``cache`` is TensorRT-LLM's name of the cache's type.
    """

    source: SourceCheckpoint
    cutting: CuttingPlan
    parallel: ParallelSpec
    quantization: str
    kept: Kept | None
    cache: str | None
    sm: int

    @property
    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        content = unified_config(self.source.config, self.parallel, self.cutting.dtype, self.quantization)
        content["quantization"]["kv_cache_quant_algo"] = self.cache
        if self.kept:
            content["quantization"] |= self.kept.section
        if self.kept and self.kept.grouped:
            content[LAYOUT_KEY] = self.sm
        return content

    @property
    def settings(self) -> dict[str, Any]:
        """What the artifact depends on besides the source's files."""
        return {
            "parallel": self.parallel.model_dump(),
            "dtype": self.cutting.dtype,
            "quantization": self.quantization,
            "kv_cache": self.cache,
            "layout_sm": self.sm if self.kept and self.kept.grouped else None,
        }


def pipeline_plan(source: SourceCheckpoint, pipeline: Pipeline) -> RankPlan:
    """Lay out the rank files that a pipeline file asks for.

    Raises:
        CheckpointError: as ``make_rank_plan``.
        PipelineError: it names a GPU that is not known.
    """
    engine = pipeline.engine
    on_gpu = engine.target != "cpu"
    named = on_gpu and (engine.gpu or engine.instance)
    return make_rank_plan(
        source,
        pipeline.parallel,
        engine.dtype,
        pipeline.quantization,
        _CACHES.get(engine.kv_cache) if on_gpu else None,
        layout_of(find_machine(engine).gpu.sm) if named else DEFAULT_SM,
    )


def make_rank_plan(
    source: SourceCheckpoint,
    parallel: ParallelSpec,
    dtype: str,
    quantization: str = "none",
    cache: str | None = None,
    sm: int = DEFAULT_SM,
) -> RankPlan:
    """Lay out every tensor of the rank files. ``dtype`` is a type's name, or ``auto`` for the source's own.

    ``quantization`` is the pipeline file's; ``cache`` TensorRT-LLM's name of the key/value cache's type, None for what
    the source says; ``sm`` the architecture of the GPUs.

    Raises:
        CheckpointError: degrees that cannot cut this model; a tensor that is missing, surplus, or of another shape
            or type than config.json says; a quantization that this source cannot have.
    """
    _check(source, quantization, cache)
    plan, kept = make_cutting_plan(source, parallel, dtype), None
    linears = source.linears
    if linears and quantization == "none":
        kept = keep_quantized(plan, linears, parallel.tp, sm)
        source = replace(source, linears=kept.linears, rounded=plan.dtype)
        cache = cache or linears.form.kv_cache
    cutting = kept.plan if kept else plan
    if cache:
        cutting = with_made(cutting, cache_scales(plan, linears, parallel.tp))
    return RankPlan(source, cutting, parallel, quantization, kept, cache, sm)


def _check(source: SourceCheckpoint, quantization: str, cache: str | None) -> None:
    form = source.linears.form if source.linears else None
    if form and quantization in ("w8a16", "w4a16"):
        raise CheckpointError(
            f"quantization: {quantization} is not possible for {source.folder}",
            why=f"its weights are quantized already ({form.method}); rounding them twice would lose more than either",
            fix="set quantization: none to keep them as they are, or dequantized for plain ones",
        )
    if form is None and quantization == "dequantized":
        raise CheckpointError(
            f"quantization: dequantized is not possible for {source.folder}",
            why="its weights are plain",
            fix="set quantization: none",
        )
    if cache == "INT8" and (form is None or form.kv_cache != "INT8"):
        raise CheckpointError(
            "engine.kv_cache=int8 is not possible for this checkpoint on a GPU",
            why="TensorRT-LLM's int8 cache needs a scale per layer from calibration, and the checkpoint has none",
            fix="set engine.kv_cache to fp8 or auto, or calibrate with ModelOpt",
        )
