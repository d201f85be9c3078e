"""What TensorRT-LLM's network of a family does not read from config.json and would leave out without a word.

Source: the classes of tensorrt_llm/models/gptneox/model.py and falcon/model.py, which take norms of 1e-5, an MLP of
four times the hidden size and unscaled rotation for granted, as these families' published models have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shardyard.errors import PipelineError

if TYPE_CHECKING:
    from shardyard.builder.targets.gpu_request import GpuRequest

__all__ = ["network_problem"]

Config = Mapping[str, Any]
#: A key, and the one value that the network has, from config.json's content.
_Fixed = tuple[str, Callable[[Config], object]]
_PLAIN_ROTATION: _Fixed = ("rotary_scaling", lambda config: None)
_FIXED: dict[str, tuple[_Fixed, ...]] = {
    "GPTNeoXForCausalLM": (
        # Rank files of another converter do not say.
        ("use_parallel_residual", lambda config: True if "use_parallel_residual" in config else None),
        ("norm_epsilon", lambda config: 1e-5),
        ("intermediate_size", lambda config: 4 * config["hidden_size"]),
        _PLAIN_ROTATION,
    ),
    "FalconForCausalLM": (
        # Of two norms one after the other, the second is made without the epsilon.
        ("norm_epsilon", lambda config: config["norm_epsilon"] if config["parallel_attention"] else 1e-5),
        _PLAIN_ROTATION,
    ),
}


def network_problem(request: GpuRequest) -> PipelineError | None:
    """Return the refusal of a model that the family's network would compute otherwise; None when it is right."""
    config = request.model.config
    for key, value in _FIXED.get(config["architecture"], ()):
        if config.get(key) != value(config):
            return PipelineError(
                f"{key}={config[key]!r} cannot run on a GPU with {config['architecture']}",
                why=f"TensorRT-LLM's network of this family has {key}={value(config)!r}, whatever config.json says",
                fix="set engine.target to cpu for this model",
            )
    return None
