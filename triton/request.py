"""A generation request, and what it looks like on the wire."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc.service_pb2 import ModelInferRequest

from shardyard.errors import RequestError

__all__ = ["GenerateRequest"]

#: Attribute → tensor of ``ensemble`` (TensorRT-LLM's names and types).
_SCALARS: dict[str, tuple[str, str, str]] = {
    "max_tokens": ("max_tokens", "INT32", "<i"),
    "min_tokens": ("min_tokens", "INT32", "<i"),
    "temperature": ("temperature", "FP32", "<f"),
    "top_k": ("top_k", "INT32", "<i"),
    "top_p": ("top_p", "FP32", "<f"),
    "seed": ("seed", "UINT64", "<Q"),
    "repetition_penalty": ("repetition_penalty", "FP32", "<f"),
    "presence_penalty": ("presence_penalty", "FP32", "<f"),
    "frequency_penalty": ("frequency_penalty", "FP32", "<f"),
    "end_id": ("end_id", "INT32", "<i"),
    "stream": ("stream", "BOOL", "<?"),
}


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt and how to go on from it. None leaves a parameter out, so that the server's default holds."""

    text: str
    max_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop_words: tuple[str, ...] = ()
    min_tokens: int | None = None
    end_id: int | None = None
    stream: bool = True
    #: Seconds for the whole answer; None waits for as long as it takes.
    timeout_s: float | None = None
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def message(self, model: str) -> ModelInferRequest:
        """Return the request as Triton's protocol buffer message; tensors have a batch dimension of one.

        Raises:
            RequestError: a value does not fit its tensor's type.
        """
        message = ModelInferRequest(model_name=model, id=self.request_id)
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, datatype, elements, raw in self._tensors():
            message.inputs.add(name=name, datatype=datatype, shape=[1, elements])
            message.raw_input_contents.append(raw)
        return message

    def _tensors(self) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield name, type, element count and bytes of every tensor that is sent."""
        yield "text_input", "BYTES", 1, _texts((self.text,))
        if self.stop_words:
            yield "stop_words", "BYTES", len(self.stop_words), _texts(self.stop_words)
        for attribute, (name, datatype, layout) in _SCALARS.items():
            value = getattr(self, attribute)
            if value is not None:
                yield name, datatype, 1, _scalar(name, layout, value)


def _texts(texts: tuple[str, ...]) -> bytes:
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise RequestError("the text cannot be sent", why=f"it is not valid Unicode: {error}") from None
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _scalar(name: str, layout: str, value: Any) -> bytes:
    try:
        return struct.pack(layout, value)
    except (struct.error, OverflowError) as error:
        raise RequestError(f"{name}={value!r} is not possible", why=str(error)) from None
