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
    "top_p_min": ("top_p_min", "FP32", "<f"),
    "top_p_decay": ("top_p_decay", "FP32", "<f"),
    "top_p_reset_id": ("top_p_reset_ids", "INT32", "<i"),
    "min_p": ("min_p", "FP32", "<f"),
    "priority": ("priority", "FP32", "<f"),
    "deadline_ms": ("deadline_ms", "INT64", "<q"),
    "lora_id": ("lora_task_id", "UINT64", "<Q"),
    "beam_width": ("beam_width", "INT32", "<i"),
    "length_penalty": ("length_penalty", "FP32", "<f"),
    "early_stopping": ("early_stopping", "BOOL", "<?"),
    "beam_diversity": ("beam_search_diversity_rate", "FP32", "<f"),
    "answers": ("num_return_sequences", "INT32", "<i"),
    "exclude_prompt": ("exclude_input_in_output", "BOOL", "<?"),
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
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_id: int | None = None
    min_p: float | None = None
    priority: float | None = None
    #: Time for the whole answer; the engine ends it then. ``timeout_s`` is the client's own patience.
    deadline_ms: int | None = None
    lora_id: int | None = None
    beam_width: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    beam_diversity: float | None = None
    #: How many answers to the prompt; None is one, or all beams.
    answers: int | None = None
    bad_words: tuple[str, ...] = ()
    #: Words and what is added to the logits of their tokens.
    bias: tuple[tuple[str, float], ...] = ()
    #: Kind and text of what the answer must be: json, json_schema, regex, ebnf_grammar.
    guide: tuple[str, str] | None = None
    #: Of answers that are not streamed; None is the server's way.
    exclude_prompt: bool | None = None
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
        for name, words in (("stop_words", self.stop_words), ("bad_words", self.bad_words)):
            if words:
                yield name, "BYTES", len(words), _texts(words)
        if self.bias:
            words, weights = zip(*self.bias, strict=True)
            yield "embedding_bias_words", "BYTES", len(words), _texts(words)
            raw = b"".join(_scalar("embedding_bias_weights", "<f", weight) for weight in weights)
            yield "embedding_bias_weights", "FP32", len(weights), raw
        if self.guide:
            for name, text in zip(("guided_decoding_guide_type", "guided_decoding_guide"), self.guide, strict=True):
                yield name, "BYTES", 1, _texts((text,))
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
