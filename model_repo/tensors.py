"""The tensors of every model in the repository: one table per model.

Names, types and shapes are those of TensorRT-LLM's own repository, so that its clients work unchanged. Left out is what
the engine cannot do yet (beams, adapters that come with a request, prompt tables, encoders). ``min_p`` and ``priority``
are the engine's own, and the ensemble has the decaying top-p that TensorRT-LLM's has not. Added are three tensors more;
README.md says why text cannot be streamed through an ensemble without them:

- ``FOLLOWER`` / ``follower`` INT32 [1]: who takes the answer to ``postprocessing`` (``models/text_state.py``).
- ``text_state`` / ``TEXT_STATE`` INT64 [6]: which stream a chunk belongs to, and how much of its text may be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MODELS", "Datatype", "ModelTensors", "Tensor"]

Datatype = Literal["BF16", "BOOL", "FP16", "FP32", "INT32", "INT64", "STRING", "UINT8", "UINT64"]


@dataclass(frozen=True)
class Tensor:
    """One input or output, without the batch dimension; -1 is a dimension of any size.

    ``scalar``: dims [1] that the model sees without a dimension. ``ragged``: rows of a batch may differ in size.
    """

    name: str
    type: Datatype
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False
    ragged: bool = False


@dataclass(frozen=True)
class ModelTensors:
    """What goes into a model and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def input(self, name: str) -> Tensor | None:
        """Return the input of that name, or None."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def output(self, name: str) -> Tensor | None:
        """Return the output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)


def _one(name: str, type: Datatype) -> Tensor:
    """An optional tensor of one element."""
    return Tensor(name, type, (1,), optional=True)


def _scalar(name: str, type: Datatype, *, optional: bool = True) -> Tensor:
    return Tensor(name, type, (1,), optional=optional, scalar=True)


PREPROCESSING = ModelTensors(
    inputs=(
        Tensor("QUERY", "STRING", (1,), optional=True),
        Tensor("REQUEST_OUTPUT_LEN", "INT32", (1,), optional=True),
        Tensor("BAD_WORDS_DICT", "STRING", (-1,), optional=True),
        Tensor("STOP_WORDS_DICT", "STRING", (-1,), optional=True),
        _one("END_ID", "INT32"),
        _one("PAD_ID", "INT32"),
    ),
    outputs=(
        Tensor("INPUT_ID", "INT32", (-1,)),
        Tensor("REQUEST_INPUT_LEN", "INT32", (1,)),
        Tensor("BAD_WORDS_IDS", "INT32", (2, -1)),
        Tensor("STOP_WORDS_IDS", "INT32", (2, -1)),
        Tensor("REQUEST_OUTPUT_LEN", "INT32", (-1,)),
        Tensor("OUT_END_ID", "INT32", (1,)),
        Tensor("OUT_PAD_ID", "INT32", (1,)),
        Tensor("FOLLOWER", "INT32", (1,)),
    ),
)

#: Outputs of the engine that the ensemble hands on under their own names.
SIDE_OUTPUTS = (
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
    Tensor("sequence_index", "INT32", (1,)),
    Tensor("num_input_tokens", "INT32", (1,)),
    Tensor("num_output_tokens", "INT32", (1,)),
    Tensor("arrival_time_ns", "INT64", (1,)),
    Tensor("first_token_time_ns", "INT64", (1,)),
    Tensor("last_token_time_ns", "INT64", (1,)),
)

TENSORRT_LLM = ModelTensors(
    inputs=(
        Tensor("input_ids", "INT32", (-1,), optional=True, ragged=True),
        _scalar("input_lengths", "INT32", optional=False),
        _scalar("request_output_len", "INT32", optional=False),
        _scalar("num_return_sequences", "INT32"),
        _scalar("end_id", "INT32"),
        _scalar("pad_id", "INT32"),
        Tensor("stop_words_list", "INT32", (2, -1), optional=True, ragged=True),
        Tensor("bad_words_list", "INT32", (2, -1), optional=True, ragged=True),
        Tensor("embedding_bias", "FP32", (-1,), optional=True, ragged=True),
        _scalar("beam_width", "INT32"),
        _scalar("temperature", "FP32"),
        _scalar("runtime_top_k", "INT32"),
        _scalar("runtime_top_p", "FP32"),
        _scalar("runtime_top_p_min", "FP32"),
        _scalar("runtime_top_p_decay", "FP32"),
        _scalar("runtime_top_p_reset_ids", "INT32"),
        _scalar("min_p", "FP32"),
        _scalar("priority", "FP32"),
        _scalar("repetition_penalty", "FP32"),
        _scalar("min_tokens", "INT32"),
        _scalar("presence_penalty", "FP32"),
        _scalar("frequency_penalty", "FP32"),
        _scalar("seed", "UINT64"),
        _scalar("return_log_probs", "BOOL"),
        _scalar("return_perf_metrics", "BOOL"),
        _scalar("return_num_input_tokens", "BOOL"),
        _scalar("return_num_output_tokens", "BOOL"),
        _scalar("exclude_input_in_output", "BOOL"),
        _scalar("stop", "BOOL"),
        _scalar("streaming", "BOOL"),
        _scalar("lora_task_id", "UINT64"),
        Tensor("guided_decoding_guide_type", "STRING", (1,), optional=True, ragged=True),
        Tensor("guided_decoding_guide", "STRING", (1,), optional=True, ragged=True),
        _scalar("follower", "INT32"),
    ),
    outputs=(
        Tensor("output_ids", "INT32", (-1, -1)),
        Tensor("sequence_length", "INT32", (-1,)),
        *SIDE_OUTPUTS,
        Tensor("text_state", "INT64", (6,)),
    ),
)

POSTPROCESSING = ModelTensors(
    inputs=(
        Tensor("TOKENS_BATCH", "INT32", (-1, -1)),
        Tensor("SEQUENCE_LENGTH", "INT32", (-1,)),
        Tensor("TEXT_STATE", "INT64", (6,), optional=True),
    ),
    outputs=(Tensor("OUTPUT", "STRING", (-1,)),),
)

ENSEMBLE = ModelTensors(
    inputs=(
        Tensor("text_input", "STRING", (1,), optional=True),
        Tensor("max_tokens", "INT32", (1,), optional=True),
        Tensor("bad_words", "STRING", (-1,), optional=True),
        Tensor("stop_words", "STRING", (-1,), optional=True),
        _one("num_return_sequences", "INT32"),
        _one("exclude_input_in_output", "BOOL"),
        _one("end_id", "INT32"),
        _one("pad_id", "INT32"),
        _one("top_k", "INT32"),
        _one("top_p", "FP32"),
        _one("top_p_min", "FP32"),
        _one("top_p_decay", "FP32"),
        _one("top_p_reset_ids", "INT32"),
        _one("min_p", "FP32"),
        _one("priority", "FP32"),
        _one("temperature", "FP32"),
        _one("repetition_penalty", "FP32"),
        _one("min_tokens", "INT32"),
        _one("presence_penalty", "FP32"),
        _one("frequency_penalty", "FP32"),
        _one("seed", "UINT64"),
        _one("return_log_probs", "BOOL"),
        _one("return_perf_metrics", "BOOL"),
        _one("return_num_input_tokens", "BOOL"),
        _one("return_num_output_tokens", "BOOL"),
        _one("beam_width", "INT32"),
        _one("stream", "BOOL"),
        _one("lora_task_id", "UINT64"),
        _one("guided_decoding_guide_type", "STRING"),
        _one("guided_decoding_guide", "STRING"),
    ),
    outputs=(Tensor("text_output", "STRING", (-1,)), *SIDE_OUTPUTS),
)

MODELS: dict[str, ModelTensors] = {
    "preprocessing": PREPROCESSING,
    "tensorrt_llm": TENSORRT_LLM,
    "postprocessing": POSTPROCESSING,
    "ensemble": ENSEMBLE,
    "tensorrt_llm_bls": ENSEMBLE,
    "ensemble_unary": ENSEMBLE,
}
