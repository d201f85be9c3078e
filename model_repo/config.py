"""Model configurations as Triton's own protocol buffer messages: built from tables, never by text substitution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from shardyard.errors import ArtifactError
from shardyard.model_repo.ensemble import DECOUPLED, STEPS, Step
from shardyard.model_repo.tensor import ModelTensors, Tensor
from shardyard.model_repo.tensors import MODELS

__all__ = ["CANCELLATION_CHECK_MS", "ModelSettings", "ensemble_config", "parse", "python_config", "render"]

#: Milliseconds between two looks of an engine's model for clients that have gone away: TensorRT-LLM's default.
CANCELLATION_CHECK_MS = 100


@dataclass(frozen=True)
class ModelSettings:
    """What a model's configuration says besides its tensors.

    ``max_queue_size``: requests that may wait in Triton's queue, 0 for no limit; None: no queue policy is written.
    """

    name: str
    max_batch_size: int
    instances: int = 1
    batching: bool = True
    max_queue_size: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


def python_config(
    settings: ModelSettings, models: Mapping[str, ModelTensors] = MODELS, *, backend: str = "python"
) -> Any:
    """Return the ModelConfig of a model of the Python backend, or of another backend that takes its place."""
    config = _base(settings.name, settings.max_batch_size, models)
    config.backend = backend
    config.instance_group.add(count=settings.instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.model_transaction_policy.decoupled = settings.name in DECOUPLED
    if settings.batching:
        config.dynamic_batching.SetInParent()
        if settings.max_queue_size is not None:
            config.dynamic_batching.preferred_batch_size.append(settings.max_batch_size)
            config.dynamic_batching.default_queue_policy.max_queue_size = settings.max_queue_size
    for key, value in settings.parameters.items():
        config.parameters[key].string_value = value
    return config


def ensemble_config(
    max_batch_size: int, models: Mapping[str, ModelTensors] = MODELS, steps: Sequence[Step] = STEPS
) -> Any:
    """Return the ModelConfig of the ensemble. It is decoupled because a step is; it has no policy of its own."""
    config = _base("ensemble", max_batch_size, models)
    config.platform = "ensemble"
    for step in steps:
        message = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        message.input_map.update(step.inputs)
        message.output_map.update(step.outputs)
    return config


def _base(name: str, max_batch_size: int, models: Mapping[str, ModelTensors]) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=max_batch_size)
    for tensor in models[name].inputs:
        message = config.input.add(**_common(tensor))
        message.optional = tensor.optional
        message.allow_ragged_batch = tensor.ragged
        if tensor.scalar:
            message.reshape.SetInParent()
    for tensor in models[name].outputs:
        config.output.add(**_common(tensor))
    return config


def _common(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": pb.DataType.Value(f"TYPE_{tensor.type}"), "dims": tensor.dims}


def parse(text: str) -> Any:
    """Return the ModelConfig that a config.pbtxt holds."""
    return text_format.Parse(text, pb.ModelConfig())


def render(config: Any) -> str:
    """Return the text of config.pbtxt; it has been parsed back and gave the same message.

    Raises:
        ArtifactError: the text does not give the message back.
    """
    text: str = text_format.MessageToString(config)
    if parse(text) != config:
        raise ArtifactError(
            f"the configuration of {config.name} does not survive writing and reading",
            why="its text gives another message",
            fix="report this together with the pipeline file and the version of protobuf",
        )
    return text
