"""What of the ``serve`` section cannot work with the LLM API; it would have no effect, or end the launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardyard.errors import PipelineError
from shardyard.gpu_spec import GpuServeSpec
from shardyard.serve_spec import ServeSpec

__all__ = ["check_llm_api"]


@dataclass(frozen=True)
class _Rule:
    """One setting that cannot work. ``broken`` sees the serve section, its gpu part, and the number of ranks."""

    setting: str
    broken: Callable[[ServeSpec, GpuServeSpec, int], bool]
    why: str
    fix: str = "leave it out"


_NO_TENSOR = "no tensor of the LLM API's Triton model asks for it"
_ONE_MODEL = "the LLM API's repository is one model of one process"

_RULES = (
    _Rule("serve.gpu.mode", lambda serve, gpu, ranks: gpu.mode != "leader", "the LLM API starts its workers itself"),
    _Rule(
        "serve.gpu.participant_ids",
        lambda serve, gpu, ranks: bool(gpu.participant_ids),
        "the LLM API starts its workers itself",
    ),
    _Rule("serve.gpu.max_beam_width", lambda serve, gpu, ranks: gpu.max_beam_width > 1, _NO_TENSOR),
    _Rule("serve.gpu.decoding_mode", lambda serve, gpu, ranks: gpu.decoding_mode is not None, _NO_TENSOR),
    _Rule("serve.gpu.lookahead", lambda serve, gpu, ranks: gpu.lookahead is not None, _NO_TENSOR),
    _Rule(
        "serve.gpu.guided_decoding_backend",
        lambda serve, gpu, ranks: gpu.guided_decoding_backend is not None,
        _NO_TENSOR,
    ),
    _Rule(
        "serve.gpu.xgrammar_tokenizer_info",
        lambda serve, gpu, ranks: gpu.xgrammar_tokenizer_info is not None,
        _NO_TENSOR,
    ),
    _Rule(
        "serve.gpu.max_queue_delay_us",
        lambda serve, gpu, ranks: gpu.max_queue_delay_us > 0,
        "the LLM API batches in flight, and nothing waits for a fuller batch",
    ),
    _Rule(
        "serve.gpu.device_ids",
        lambda serve, gpu, ranks: len(gpu.device_ids) not in (0, ranks),
        "each rank has one GPU",
        "name as many as tp × pp, or leave it out",
    ),
    _Rule(
        "serve.gpu.device_ids",
        lambda serve, gpu, ranks: len(set(gpu.device_ids)) < len(gpu.device_ids),
        "two ranks cannot share a GPU",
        "name each GPU once",
    ),
    _Rule(
        "serve.gpu.device_ids",
        lambda serve, gpu, ranks: bool(gpu.device_ids) and gpu.num_nodes > 1,
        "the LLM API's workers on other hosts take their GPUs in order",
    ),
    _Rule(
        "serve.gpu.num_nodes",
        lambda serve, gpu, ranks: ranks % gpu.num_nodes != 0,
        "ranks divide over hosts evenly",
        "name a divisor of tp × pp",
    ),
    _Rule(
        "serve.otlp_endpoint",
        lambda serve, gpu, ranks: serve.otlp_endpoint is not None,
        "the model around the LLM API makes no spans",
    ),
    _Rule("serve.preprocessing_instances", lambda serve, gpu, ranks: serve.preprocessing_instances > 1, _ONE_MODEL),
    _Rule("serve.postprocessing_instances", lambda serve, gpu, ranks: serve.postprocessing_instances > 1, _ONE_MODEL),
    _Rule("serve.bls_instances", lambda serve, gpu, ranks: serve.bls_instances > 1, _ONE_MODEL),
)


def check_llm_api(serve: ServeSpec, ranks: int) -> None:
    """Check the serve section for a model of so many ranks.

    Raises:
        PipelineError: a setting cannot work; the error names it.
    """
    for rule in _RULES:
        if rule.broken(serve, serve.gpu, ranks):
            value: object = serve
            for name in rule.setting.split(".")[1:]:
                value = getattr(value, name)
            why = f"{rule.why} (engine.target=tensorrt_llm_api)"
            raise PipelineError(f"{rule.setting}={value} cannot work", why, rule.fix)
