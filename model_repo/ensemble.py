"""The ensemble's steps as tables, and the check that every edge fits both of its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardyard.errors import ArtifactError
from shardyard.model_repo.tensor import ModelTensors, Tensor
from shardyard.model_repo.tensors import MODELS, SIDE_OUTPUTS

__all__ = ["STEPS", "TEXT_NAMES", "TEXT_STEPS", "Step", "check_edges"]


@dataclass(frozen=True)
class Step:
    """One model of the ensemble: its tensor → the ensemble's name for what flows there."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


STEPS = (
    Step(
        "preprocessing",
        {
            "QUERY": "text_input",
            "DECODER_QUERY": "decoder_text_input",
            "REQUEST_OUTPUT_LEN": "max_tokens",
            "STOP_WORDS_DICT": "stop_words",
            "BAD_WORDS_DICT": "bad_words",
            "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
            "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
            "END_ID": "end_id",
            "PAD_ID": "pad_id",
            "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
        },
        {
            "INPUT_ID": "_INPUT_ID",
            "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
            "STOP_WORDS_IDS": "_STOP_WORDS_IDS",
            "BAD_WORDS_IDS": "_BAD_WORDS_IDS",
            "EMBEDDING_BIAS": "_EMBEDDING_BIAS",
            "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
            "OUT_END_ID": "_PREPROCESSOR_END_ID",
            "OUT_PAD_ID": "_PREPROCESSOR_PAD_ID",
            "FOLLOWER": "_FOLLOWER",
        },
    ),
    Step(
        "tensorrt_llm",
        {
            "input_ids": "_INPUT_ID",
            "input_lengths": "_REQUEST_INPUT_LEN",
            "request_output_len": "_REQUEST_OUTPUT_LEN",
            "end_id": "_PREPROCESSOR_END_ID",
            "pad_id": "_PREPROCESSOR_PAD_ID",
            "stop_words_list": "_STOP_WORDS_IDS",
            "bad_words_list": "_BAD_WORDS_IDS",
            "embedding_bias": "_EMBEDDING_BIAS",
            "follower": "_FOLLOWER",
            "runtime_top_k": "top_k",
            "runtime_top_p": "top_p",
            "runtime_top_p_min": "top_p_min",
            "runtime_top_p_decay": "top_p_decay",
            "runtime_top_p_reset_ids": "top_p_reset_ids",
            "streaming": "stream",
            "len_penalty": "length_penalty",
            **_same(
                "num_return_sequences",
                "exclude_input_in_output",
                "temperature",
                "repetition_penalty",
                "min_tokens",
                "presence_penalty",
                "frequency_penalty",
                "seed",
                "return_log_probs",
                "return_context_logits",
                "return_generation_logits",
                "return_perf_metrics",
                "return_num_input_tokens",
                "return_num_output_tokens",
                "beam_width",
                "early_stopping",
                "beam_search_diversity_rate",
                "min_p",
                "priority",
                "deadline_ms",
                "lora_task_id",
                "lora_weights",
                "lora_config",
                "prompt_embedding_table",
                "prompt_vocab_size",
                "guided_decoding_guide_type",
                "guided_decoding_guide",
            ),
        },
        {
            "output_ids": "_TOKENS_BATCH",
            "sequence_length": "_SEQUENCE_LENGTH",
            "text_state": "_TEXT_STATE",
            **_same(*(tensor.name for tensor in SIDE_OUTPUTS)),
        },
    ),
    Step(
        "postprocessing",
        {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH", "TEXT_STATE": "_TEXT_STATE"},
        {"OUTPUT": "text_output"},
    ),
)


def _one_step() -> Step:
    """Return the engine's step with what ``preprocessing`` would get, and with text in place of tokens."""
    before, engine, _ = STEPS
    made = set(before.outputs.values())
    return Step(
        engine.model,
        {
            **{TEXT_NAMES.get(name, name): pooled for name, pooled in before.inputs.items()},
            **{name: pooled for name, pooled in engine.inputs.items() if pooled not in made},
        },
        _same("text_output", *(tensor.name for tensor in SIDE_OUTPUTS)),
    )


#: Inputs of ``preprocessing`` that the engine's step has by another name.
TEXT_NAMES = {"REQUEST_OUTPUT_LEN": "request_output_len", "END_ID": "end_id", "PAD_ID": "pad_id"}

#: The ensemble where the engine's process does all: that spares two processes, three messages for each request and
#: three for each token. Nobody acknowledges chunks then, so somebody else must tell the engine of clients that go: the
#: front (``ServeSpec``).
TEXT_STEPS = (_one_step(),)

#: Models that may answer a request with any number of responses.
DECOUPLED = frozenset({"tensorrt_llm", "tensorrt_llm_bls"})


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the ensemble comes from, and how many decoupled steps lie before it."""

    origin: str
    tensor: Tensor
    depth: int


def check_edges(steps: Sequence[Step] = STEPS, models: Mapping[str, ModelTensors] = MODELS) -> None:
    """Check name, type and shape of every edge, and that every tensor is made once, before it is used, and used.

    Raises:
        ArtifactError: an edge does not fit; the error names it.
    """
    whole = models["ensemble"]
    pool = {tensor.name: _Source("ensemble", tensor, 0) for tensor in whole.inputs}
    used: set[str] = set()
    for step in steps:
        depth = _check_inputs(step, models[step.model], pool)
        used.update(step.inputs.values())
        _add_outputs(step, models[step.model], pool, depth + (step.model in DECOUPLED))
    for tensor in whole.outputs:
        source = pool.get(tensor.name)
        if source is None or source.origin == "ensemble":
            raise _broken(f"output ensemble.{tensor.name}", "no step makes it")
        _check_pair(source, tensor, "ensemble")
        used.add(tensor.name)
    for name in pool.keys() - used:
        raise _broken(f"{pool[name].origin}.{pool[name].tensor.name}", f"nothing uses it (as {name})")


def _check_inputs(step: Step, tensors: ModelTensors, pool: Mapping[str, _Source]) -> int:
    """Check the edges that end at a step; return how many decoupled steps lie before it (Triton: the same for all)."""
    depths = {}
    for name, pooled in step.inputs.items():
        edge = f"{pooled} → {step.model}.{name}"
        target, source = tensors.input(name), pool.get(pooled)
        if target is None:
            raise _broken(edge, f"{step.model} has no input {name}")
        if source is None:
            raise _broken(edge, f"neither the ensemble nor an earlier step has {pooled}")
        _check_pair(source, target, step.model)
        depths[source.depth] = pooled
    for tensor in tensors.inputs:
        if not tensor.optional and tensor.name not in step.inputs:
            raise _broken(f"? → {step.model}.{tensor.name}", "it is required, and nothing is connected to it")
    if len(depths) > 1:
        mixed = ", ".join(f"{name} after {depth}" for depth, name in sorted(depths.items()))
        raise _broken(f"into {step.model}", f"tensors from before and after a decoupled step cannot mix ({mixed})")
    return max(depths, default=0)


def _add_outputs(step: Step, tensors: ModelTensors, pool: dict[str, _Source], depth: int) -> None:
    for name, pooled in step.outputs.items():
        tensor = tensors.output(name)
        edge = f"{step.model}.{name} → {pooled}"
        if tensor is None:
            raise _broken(edge, f"{step.model} has no output {name}")
        if pooled in pool:
            raise _broken(edge, f"{pool[pooled].origin} makes {pooled} already")
        pool[pooled] = _Source(step.model, tensor, depth)


def _check_pair(source: _Source, target: Tensor, model: str) -> None:
    made = source.tensor
    edge = f"{source.origin}.{made.name} → {model}.{target.name}"
    if made.type != target.type:
        raise _broken(edge, f"{made.type} does not fit {target.type}")
    fits = len(made.dims) == len(target.dims) and all(
        a == b or -1 in (a, b) for a, b in zip(made.dims, target.dims, strict=True)
    )
    if not fits:
        raise _broken(edge, f"shape {list(made.dims)} does not fit {list(target.dims)}")


def _broken(edge: str, why: str) -> ArtifactError:
    return ArtifactError(f"the ensemble's edge {edge} is broken", why=why, fix="mend the tables in model_repo/")
