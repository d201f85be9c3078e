"""The requests of the front's own."""

from __future__ import annotations

import struct

from tritonclient.grpc import service_pb2

from shardyard.calls import ENDED

__all__ = ["stop_request"]

#: The model that is the engine, and what it wants of a request beside ``stop``.
_ENGINE = "tensorrt_llm"
_LENGTHS = ("input_lengths", "request_output_len")


def stop_request(call: str) -> bytes:
    """Return a ModelInferRequest that ends what the engine does for a call."""
    ended = {ENDED: service_pb2.InferParameter(string_param=call)}
    request = service_pb2.ModelInferRequest(model_name=_ENGINE, parameters=ended)
    for name in _LENGTHS:
        request.inputs.add(name=name, datatype="INT32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<i", 1))
    request.inputs.add(name="stop", datatype="BOOL", shape=[1, 1])
    request.raw_input_contents.append(b"\1")
    request.outputs.add(name="output_ids")
    serialized: bytes = request.SerializeToString()
    return serialized
