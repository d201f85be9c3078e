"""Requests over gRPC: one ``ModelStreamInfer`` stream per request, on a channel of the user's own.

The stubs are used bare. Triton's own client reads a stream on a thread of its own, which under gevent costs a switch
per response and hides when a response came.
"""

from __future__ import annotations

import struct
from time import perf_counter_ns

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from shardyard.perf.lane import Exchange, LaneError, Unreachable
from shardyard.perf.plan import Plan
from shardyard.perf.workload import Prompt

__all__ = ["GrpcLane"]

CONNECT_TIMEOUT_S = 10.0
#: A channel of its own per lane (channels to one address share a connection otherwise), and no limit on a message.
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
#: Statuses that say that nobody answered, or not in time.
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class GrpcLane:
    """A gRPC channel."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.channel = grpc.insecure_channel(f"{plan.host}:{plan.grpc_port}", options=OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def ready(self) -> None:
        """Wait until the channel is connected."""
        try:
            grpc.channel_ready_future(self.channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise Unreachable(f"no gRPC connection to {self.plan.host}:{self.plan.grpc_port}") from None

    def encode(self, prompt: Prompt) -> service_pb2.ModelInferRequest:
        """Return a request in the ensemble's tensors. ``min_tokens`` keeps the answer from ending early."""
        text = prompt.text.encode()
        length = struct.pack("<i", prompt.output_tokens)
        request = service_pb2.ModelInferRequest(model_name=self.plan.model)
        for name, datatype, raw in (
            ("text_input", "BYTES", struct.pack("<I", len(text)) + text),
            ("max_tokens", "INT32", length),
            ("min_tokens", "INT32", length),
            ("stream", "BOOL", b"\x01"),
        ):
            request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
            request.raw_input_contents.append(raw)
        return request

    def exchange(self, request: service_pb2.ModelInferRequest, log: Exchange) -> None:
        """Send and stamp; the deadline of the whole stream is the plan's request timeout."""
        stamps, payloads = log.stamps, log.payloads
        log.start_ns = perf_counter_ns()
        try:
            for response in self.stub.ModelStreamInfer(iter((request,)), timeout=self.plan.request_timeout_s):
                stamps.append(perf_counter_ns())
                payloads.append(response)
        except grpc.RpcError as error:
            message = f"{error.code().name}: {error.details()}"
            raise (Unreachable if error.code() in _GONE else LaneError)(message) from None
        finally:
            log.end_ns = perf_counter_ns()
        for response in payloads:
            if response.error_message:
                raise LaneError(response.error_message)

    def texts(self, log: Exchange) -> list[tuple[int, str]]:
        """Return the text of each response; one without ``text_output`` (the empty last one) carries none."""
        return [(when, _text(response)) for when, response in zip(log.stamps, log.payloads, strict=True)]

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


def _text(response: service_pb2.ModelStreamInferResponse) -> str:
    """Return the first string of ``text_output``: four bytes of length, then the bytes."""
    answer = response.infer_response
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if tensor.name == "text_output" and len(raw) >= 4:
            (size,) = struct.unpack_from("<I", raw)
            return bytes(raw[4 : 4 + size]).decode(errors="replace")
    return ""
