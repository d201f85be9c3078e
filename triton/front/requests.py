"""What the front adds to clients' requests, and the requests of its own."""

from __future__ import annotations

import struct

from tritonclient.grpc import service_pb2

from shardyard.calls import CALL, ENDED

__all__ = ["name_tag", "stop_request"]

#: The model that is the engine, and what it wants of a request beside ``stop``.
_ENGINE = "tensorrt_llm"
_LENGTHS = ("input_lengths", "request_output_len")


def name_tag(call: str) -> bytes:
    """Return bytes that name the call when a serialized ModelInferRequest follows them.

    Messages of protobuf that are put behind each other are one: repeated fields, and maps among them, hold the entries
    of both. So nothing of the request has to be read. In front of a request that was cut off they cannot be taken for
    the rest of it. A client that sends the parameter itself has the last word, and only its own requests then go on
    without it.
    """
    tag: bytes = service_pb2.ModelInferRequest(parameters=_parameters(CALL, call)).SerializeToString()
    return tag


def stop_request(call: str) -> bytes:
    """Return a ModelInferRequest that ends what the engine does for a call."""
    request = service_pb2.ModelInferRequest(model_name=_ENGINE, parameters=_parameters(ENDED, call))
    for name in _LENGTHS:
        request.inputs.add(name=name, datatype="INT32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<i", 1))
    request.inputs.add(name="stop", datatype="BOOL", shape=[1, 1])
    request.raw_input_contents.append(b"\1")
    request.outputs.add(name="output_ids")
    serialized: bytes = request.SerializeToString()
    return serialized


def _parameters(name: str, value: str) -> dict[str, service_pb2.InferParameter]:
    return {name: service_pb2.InferParameter(string_param=value)}
