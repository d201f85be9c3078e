"""The tensors of every model in the CPU engine's repository: TensorRT-LLM's, and what is added.

All of TensorRT-LLM's names, types and shapes are there, so that its clients work unchanged; who asks for what the
engine cannot do is told why (``unsupported.py``). ``min_p``, ``priority`` and ``deadline_ms`` are the engine's own; the
ensemble has the decaying top-p, early stopping and diversity of beams that TensorRT-LLM's keeps to its engine. More
tensors go between the models; README.md says why text cannot be streamed through an ensemble without them:

- ``FOLLOWER`` / ``follower`` INT32 [1]: who takes the answer to ``postprocessing`` (``models/text_state.py``).
- ``text_state`` / ``TEXT_STATE`` INT64 [-1]: which stream a chunk belongs to, and how much of its text may be shown.
- ``failure`` STRING [1]: why an answer of which something was sent cannot go on, for the model that called the engine.
- ``QUERY`` and other inputs (``TEXT_INPUTS``) and ``text_output`` STRING [-1], an output, of ``tensorrt_llm``: text in
  place of tokens, for an ensemble of which it is the only step.
"""

from __future__ import annotations

from dataclasses import replace

from shardyard.model_repo.gpu_tensors import gpu_models
from shardyard.model_repo.tensor import Datatype, ModelTensors, Tensor

__all__ = ["MODELS", "SIDE_OUTPUTS", "TEXT_INPUTS"]

_UPSTREAM = gpu_models("FP32", "FP16")


def _added(scalar: bool, **types: Datatype) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type, (1,), optional=True, scalar=scalar) for name, type in types.items())


#: Inputs of ``preprocessing`` that ``tensorrt_llm`` takes too, by the same names, from who sends text in the tokens'
#: place. The other inputs of ``preprocessing`` are its own already.
TEXT_INPUTS = (
    "QUERY",
    "DECODER_QUERY",
    "STOP_WORDS_DICT",
    "BAD_WORDS_DICT",
    "EMBEDDING_BIAS_WORDS",
    "EMBEDDING_BIAS_WEIGHTS",
    "PROMPT_TABLE_EXTRA_ID",
)

#: With text, nobody knows the prompt's length, and it is the model that says what else is missing.
_WITH_TOKENS = ("input_lengths", "request_output_len")

_ENGINE = ModelTensors(
    (
        *(
            replace(tensor, optional=True) if tensor.name in _WITH_TOKENS else tensor
            for tensor in _UPSTREAM["tensorrt_llm"].inputs
        ),
        *(tensor for tensor in _UPSTREAM["preprocessing"].inputs if tensor.name in TEXT_INPUTS),
        *_added(True, min_p="FP32", priority="FP32", deadline_ms="INT64", follower="INT32"),
    ),
    (
        *_UPSTREAM["tensorrt_llm"].outputs,
        Tensor("text_state", "INT64", (-1,)),
        Tensor("failure", "STRING", (1,)),
        Tensor("text_output", "STRING", (-1,)),
    ),
)
_REQUEST = _added(
    False,
    min_p="FP32",
    priority="FP32",
    deadline_ms="INT64",
    top_p_min="FP32",
    top_p_decay="FP32",
    top_p_reset_ids="INT32",
    early_stopping="BOOL",
    beam_search_diversity_rate="FP32",
)
_ENSEMBLE = ModelTensors((*_UPSTREAM["ensemble"].inputs, *_REQUEST), _UPSTREAM["ensemble"].outputs)
_BLS = ModelTensors((*_UPSTREAM["tensorrt_llm_bls"].inputs, *_REQUEST), _UPSTREAM["tensorrt_llm_bls"].outputs)

#: Outputs of the engine that the ensemble hands on under their own names.
SIDE_OUTPUTS = tuple(tensor for tensor in _ENSEMBLE.outputs if tensor.name != "text_output")

MODELS: dict[str, ModelTensors] = {
    **_UPSTREAM,
    "tensorrt_llm": _ENGINE,
    "ensemble": _ENSEMBLE,
    "tensorrt_llm_bls": _BLS,
    "ensemble_unary": _ENSEMBLE,
}
