"""Streams text from an endpoint over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from shardyard.endpoint import Endpoint
from shardyard.errors import LaunchError, RequestError
from shardyard.triton.request import GenerateRequest

__all__ = ["GenerateRequest", "StreamClient"]

#: The model that takes text and gives text.
MODEL = "ensemble"

_TEXT = "text_output"

#: Prompts and answers may be long; gRPC's own limit is 4 MiB.
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class StreamClient:
    """A connection to an endpoint; threads may share it, and each request is a stream of its own."""

    def __init__(self, endpoint: Endpoint, model: str = MODEL) -> None:
        self.endpoint = endpoint
        self.model = model
        self._channel = _connect(endpoint)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def generate(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the answer's text, piece by piece; closing the iterator early cancels the request.

        Raises:
            RequestError: the endpoint refused the request, failed, or took longer than the request allows.
            LaunchError: no endpoint answers at this address.
        """
        for texts in self.answers(request):
            if text := "".join(texts):
                yield text

    def answers(self, request: GenerateRequest) -> Iterator[list[str]]:
        """Yield what each response holds: a piece of an answer, or several whole answers.

        Raises:
            RequestError, LaunchError: as ``generate``.
        """
        call = self._stub.ModelStreamInfer(iter([request.message(self.model)]), timeout=request.timeout_s)
        answered, refusal = False, ""
        try:
            # Read to the very end, also after a refusal: a cancel that comes as late as the last response can leave the
            # model's process hanging when it is unloaded (seen with Triton 2.51).
            for response in call:
                answered = True
                refusal = refusal or response.error_message
                if not refusal and (texts := _texts(response.infer_response)):
                    yield texts
        except grpc.RpcError as error:
            raise self._explain(error, request, answered) from None
        finally:
            call.cancel()
        if refusal:
            raise RequestError(f"the endpoint refused the request: {refusal}")

    def close(self) -> None:
        """Close the connection; requests in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _explain(self, error: Any, request: GenerateRequest, answered: bool) -> LaunchError:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestError(f"the endpoint did not finish the answer within {request.timeout_s:g} s")
        if code == grpc.StatusCode.UNAVAILABLE and not answered:
            return LaunchError(
                f"no endpoint answers at {self.endpoint.grpc_address}",
                why=f"gRPC says: {details}",
                fix="start it in another terminal: shardyard serve PIPELINE.yaml",
            )
        where = "in the middle of the answer" if answered else "before any answer"
        return RequestError(f"the request failed {where}", why=f"gRPC says: {details} ({code.name})")


def _connect(endpoint: Endpoint) -> Any:
    tls = endpoint.tls
    if tls is None:
        return grpc.insecure_channel(endpoint.grpc_address, options=_OPTIONS)
    ca, key, cert = (Path(path).read_bytes() if path else None for path in (tls.ca, tls.key, tls.cert))
    name = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.secure_channel(endpoint.grpc_address, credentials, options=[*_OPTIONS, *name])


def _texts(response: Any) -> list[str]:
    """Return the texts of a response; the final one may be empty."""
    for index, output in enumerate(response.outputs):
        if output.name == _TEXT:
            raw = response.raw_output_contents[index]
            parts = _elements(raw) if raw else output.contents.bytes_contents
            return [part.decode(errors="replace") for part in parts]
    return []


def _elements(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor: each is a length in 4 bytes and that many bytes of UTF-8."""
    parts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        parts.append(raw[4:end])
        raw = raw[end:]
    return parts
