"""The requests of the front's own."""

from __future__ import annotations

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from shardyard.calls import ENDED
from shardyard.triton.world import ENGINE_MODEL

__all__ = ["stop_request"]

_STOP = "stop"

#: A one of the types that ``stop`` and what a model wants beside it have.
_ONES = {"TYPE_BOOL": b"\1", "TYPE_INT32": b"\1\0\0\0"}


def stop_request(call: str, model: ModelConfig) -> bytes:
    """Return a ModelInferRequest that ends what the engine does for a call.

    ``model``: its configuration. Around an engine it has batches and wants lengths, around the LLM API neither.
    """
    ended = {ENDED: service_pb2.InferParameter(string_param=call)}
    request = service_pb2.ModelInferRequest(model_name=ENGINE_MODEL, parameters=ended)
    for tensor in model.input:
        type = DataType.Name(tensor.data_type)
        if type in _ONES and (tensor.name == _STOP or not tensor.optional):
            shape = [1] * (len(tensor.dims) + (model.max_batch_size > 0))
            request.inputs.add(name=tensor.name, datatype=type.removeprefix("TYPE_"), shape=shape)
            request.raw_input_contents.append(_ONES[type])
    for tensor in model.output[:1]:
        request.outputs.add(name=tensor.name)
    serialized: bytes = request.SerializeToString()
    return serialized
