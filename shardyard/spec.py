"""The pipeline file as types.

One YAML file describes a whole run. Every verb reads the same file; ``--set a.b=value`` overrides a field. An unknown
key is an error that names the nearest known one; a value out of range or an impossible combination is an error that
says what would be possible.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shardyard.gpu_spec import GpuServeSpec

__all__ = [
    "EngineSpec",
    "LengthSpec",
    "LoraSpec",
    "ModelSpec",
    "ParallelSpec",
    "PerfSpec",
    "Pipeline",
    "ServeSpec",
    "SloSpec",
]

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    """A section of the pipeline file: frozen, no unknown keys, no silent type changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSpec(_Section):
    """Where the weights and the tokenizer come from."""

    checkpoint: Annotated[
        str, Field(min_length=1, description="folder with config.json and *.safetensors, or hf://org/name@revision")
    ]
    tokenizer: Annotated[str | None, Field(description="folder with tokenizer.json; default: the checkpoint's")] = None


class ParallelSpec(_Section):
    """Parallel degrees; the world has tp * pp * cp ranks, tensor parallel fastest."""

    tp: Annotated[Positive, Field(description="tensor parallel degree")] = 1
    pp: Annotated[Positive, Field(description="pipeline parallel degree")] = 1
    cp: Annotated[Positive, Field(description="context parallel degree; cp peers read the same rank file")] = 1
    moe_ep: Annotated[Positive, Field(description="expert parallel degree; moe_tp = tp / moe_ep")] = 1
    use_parallel_embedding: Annotated[bool, Field(description="shard the embedding table over tp")] = False
    embedding_sharding_dim: Annotated[Literal[0, 1], Field(description="0: vocabulary, 1: hidden size")] = 0

    @property
    def world_size(self) -> int:
        """Number of ranks, one process each."""
        return self.tp * self.pp * self.cp

    @property
    def moe_tp(self) -> int:
        """Tensor parallel degree inside each expert."""
        return self.tp // self.moe_ep

    @model_validator(mode="after")
    def _degrees(self) -> ParallelSpec:
        if self.tp % self.moe_ep:
            possible = [d for d in range(1, self.tp + 1) if self.tp % d == 0]
            raise ValueError(f"moe_ep={self.moe_ep} does not divide tp={self.tp}; possible: {possible}")
        return self


class LoraSpec(_Section):
    """What the CPU engine keeps ready for LoRA adapters; which ones there are is said at launch: serve.lora_dir."""

    max_rank: Annotated[int, Field(ge=0, description="largest rank of an adapter; 0: the engine takes none")] = 0
    max_adapters: Annotated[Positive, Field(description="adapters in memory, and so in use at a time")] = 4


class EngineSpec(_Section):
    """What the engine is built for."""

    target: Annotated[
        Literal["cpu", "tensorrt_llm", "tensorrt_llm_api"],
        Field(description="cpu: the embedded engine; tensorrt_llm: trtllm-build; tensorrt_llm_api: its LLM API"),
    ] = "cpu"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="type of the rank files' weights; auto keeps the source's"),
    ] = "auto"
    compute: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="arithmetic of the CPU engine; auto: float32 for float32 and int8 weights, else bfloat16"),
    ] = "auto"
    kv_cache: Annotated[
        Literal["auto", "float32", "bfloat16", "int8", "fp8"],
        Field(description="key/value cache type; auto: float32 for float32 weights, else int8; fp8: GPU targets"),
    ] = "auto"
    kv_cache_tokens: Annotated[
        Positive | None, Field(description="tokens that the paged cache holds; default: what the largest batch needs")
    ] = None
    matmul: Annotated[
        Literal["auto", "native", "plugin"],
        Field(description="CPU engine: its own products, or OpenVINO's; auto: its own where they are faster"),
    ] = "auto"
    max_batch_size: Annotated[Positive, Field(description="sequences in flight")] = 16
    max_seq_len: Annotated[int, Field(ge=2, description="prompt plus answer, tokens")] = 2048
    max_num_tokens: Annotated[Positive, Field(description="tokens per forward step; chunks longer prompts")] = 2048
    max_beam_width: Annotated[
        Positive | None,
        Field(description="beams of a request at most; default: max_batch_size on the CPU engine, 1 for GPU targets"),
    ] = None
    threads: Annotated[Positive | None, Field(description="threads per rank; default: cores / ranks")] = None
    lora: LoraSpec = LoraSpec()
    speculative: Annotated[
        Literal["none", "prompt_lookup"],
        Field(description="CPU engine: draft what followed the same tokens before, and verify it in one step"),
    ] = "none"
    instance: Annotated[str | None, Field(description="GPU targets: EC2 instance, e.g. p5.48xlarge")] = None
    gpu: Annotated[str | None, Field(description="GPU targets: the GPU, where no instance is named, e.g. H100")] = None
    toolchain: Annotated[
        Literal["auto", "25.10", "26.07"],
        Field(description="GPU targets: pinned image; auto: the first that supports the GPU"),
    ] = "auto"
    runner: Annotated[
        Literal["here", "docker", "enroot", "apptainer"],
        Field(description="GPU targets: where trtllm-build runs; here: in this environment"),
    ] = "here"
    image: Annotated[
        str | None, Field(description="GPU targets: image in place of the pin's tag, e.g. by digest or a .sqsh file")
    ] = None
    kv_memory_fraction: Annotated[
        float, Field(gt=0, le=1, description="GPU targets: share of the memory left over that the cache takes")
    ] = 0.9
    build_flags: Annotated[
        dict[str, str | int | bool],
        Field(description="GPU targets: further trtllm-build flags by name, e.g. {multiple_profiles: enable}"),
    ] = {}
    build_retries: Annotated[int, Field(ge=0, description="GPU targets: times that a failed rank is built again")] = 1

    @model_validator(mode="after")
    def _beams(self) -> EngineSpec:
        if self.target == "cpu" and (self.max_beam_width or 1) > self.max_batch_size:
            raise ValueError(
                f"max_beam_width={self.max_beam_width} is above max_batch_size; possible: 1 to {self.max_batch_size}"
            )
        return self


class ServeSpec(_Section):
    """How the endpoint is launched."""

    host: Annotated[str, Field(description="address that the ports bind to")] = "127.0.0.1"
    http_port: Annotated[Port, Field(description="0 takes a free port")] = 8000
    grpc_port: Annotated[Port, Field(description="0 takes a free port")] = 8001
    metrics_port: Annotated[Port, Field(description="0 takes a free port")] = 8002
    max_queue_size: Annotated[int, Field(ge=0, description="requests that may wait; 0: no limit")] = 128
    preprocessing_instances: Annotated[Positive, Field(description="processes that tokenize")] = 1
    postprocessing_instances: Annotated[Positive, Field(description="processes that turn tokens into text")] = 1
    bls_instances: Annotated[Positive, Field(description="processes of tensorrt_llm_bls and of ensemble_unary")] = 1
    enable_kv_cache_reuse: Annotated[bool, Field(description="compute prompts that begin alike once")] = True
    batch_scheduler_policy: Annotated[
        Literal["guaranteed_no_evict", "max_utilization"],
        Field(description="keep room for the longest answers, or interrupt who ranks lowest when the cache is full"),
    ] = "guaranteed_no_evict"
    lora_dir: Annotated[
        str | None, Field(description="folder of LoRA adapters: <id>/adapter_config.json and adapter_model.safetensors")
    ] = None
    exclude_input_in_output: Annotated[bool, Field(description="leave the prompt out of unary answers")] = True
    gpu: GpuServeSpec = GpuServeSpec()
    hosts: Annotated[
        tuple[str, ...],
        Field(strict=False, description="NAME:RANKS of each host, this one first; empty: this one alone"),
    ] = ()
    hostfile: Annotated[str | None, Field(description="the same as a file: lines NAME slots=RANKS")] = None
    launch_agent: Annotated[
        str | None, Field(description="program that runs a command on a host, called as PROGRAM HOST COMMAND (ssh)")
    ] = None
    network: Annotated[
        str | None, Field(description="network that connects the hosts, e.g. 10.0.0.0/16; default: as MPI finds it")
    ] = None
    open_apis: Annotated[
        tuple[Literal["model-repository", "shared-memory", "trace", "logging"], ...],
        Field(strict=False, description="groups of Triton's calls that clients may use, beside inference and health"),
    ] = ()
    start_timeout_s: Annotated[float, Field(gt=0, description="seconds until the launch has failed")] = 120.0
    stop_timeout_s: Annotated[float, Field(gt=0, description="seconds for a clean end before a kill")] = 5.0
    drain_timeout_s: Annotated[
        float, Field(ge=0, description="seconds that open requests get to finish, once the end is asked for")
    ] = 30.0
    hang_timeout_s: Annotated[
        float, Field(ge=2, description="seconds without a sign of life until a process counts as hanging")
    ] = 8.0
    step_timeout_s: Annotated[
        float, Field(gt=0, description="seconds that one step of the engine may take until its rank counts as hanging")
    ] = 120.0


class LengthSpec(_Section):
    """A distribution of lengths in tokens: normal, cut to [min, max]; stddev 0 is constant."""

    mean: Annotated[float, Field(ge=1, description="tokens")]
    stddev: Annotated[float, Field(ge=0, description="0: every length is the mean")] = 0.0
    min: Annotated[Positive, Field(description="shorter draws are cut to this")] = 1
    max: Annotated[Positive | None, Field(description="longer draws are cut to this")] = None

    @model_validator(mode="after")
    def _limits(self) -> LengthSpec:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}; possible: max ≥ min")
        return self


class SloSpec(_Section):
    """Limits that a good request keeps. Where one is given, goodput counts the requests that keep all of them."""

    ttft_ms: Annotated[float | None, Field(gt=0, description="longest time to the first token")] = None
    itl_ms: Annotated[float | None, Field(gt=0, description="longest mean time between tokens")] = None
    request_latency_ms: Annotated[float | None, Field(gt=0, description="longest time to the whole answer")] = None


class PerfSpec(_Section):
    """One load test."""

    protocol: Annotated[Literal["grpc", "http"], Field(description="gRPC stream or HTTP generate_stream")] = "grpc"
    model: Annotated[Literal["ensemble", "tensorrt_llm_bls"], Field(description="the Triton model that is driven")] = (
        "ensemble"
    )
    arrival: Annotated[Literal["closed", "poisson"], Field(description="closed: as fast as answers come")] = "closed"
    concurrency: Annotated[Positive, Field(description="closed loop: users, each with one request in flight")] = 4
    rate: Annotated[float | None, Field(gt=0, description="Poisson: mean requests per second")] = None
    requests: Annotated[Positive | None, Field(description="stop after so many measured requests")] = 32
    duration_s: Annotated[float | None, Field(gt=0, description="stop after so many seconds")] = None
    warmup_requests: Annotated[int, Field(ge=0, description="requests that are sent first and not counted")] = 4
    input_tokens: LengthSpec = LengthSpec(mean=64)
    output_tokens: LengthSpec = LengthSpec(mean=32)
    seed: Annotated[int, Field(ge=0, description="the same seed sends the same prompts")] = 0
    request_timeout_s: Annotated[float, Field(gt=0, description="a slower request counts as an error")] = 60.0
    slo: SloSpec = SloSpec()

    @model_validator(mode="after")
    def _arrival(self) -> PerfSpec:
        if self.arrival == "poisson" and self.rate is None:
            raise ValueError("arrival=poisson needs rate (requests per second)")
        if self.requests is None and self.duration_s is None:
            raise ValueError("give requests, duration_s or both, or the test never ends")
        return self


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Pipeline(_Section):
    """The whole file."""

    name: Annotated[str, Field(description="names the work folder")]
    model: ModelSpec
    parallel: ParallelSpec = ParallelSpec()
    quantization: Annotated[
        Literal["none", "w8a16", "w4a16", "dequantized"],
        Field(
            description="w8a16: int8 weights; w4a16: int4 weights, the CPU engine's in groups; none: as the checkpoint "
            "has them, also quantized ones; dequantized: plain weights of a quantized checkpoint"
        ),
    ] = "none"
    engine: EngineSpec = EngineSpec()
    serve: ServeSpec = ServeSpec()
    perf: PerfSpec = PerfSpec()

    @model_validator(mode="after")
    def _checks(self) -> Pipeline:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be a file name: letters, digits, '.', '_' and '-'")
        if self.engine.target != "cpu" and self.engine.lora.max_rank:
            raise ValueError("engine.lora is the CPU engine's; possible for GPU targets: engine.build_flags")
        if self.serve.lora_dir and not self.engine.lora.max_rank:
            raise ValueError("serve.lora_dir needs engine.lora.max_rank; possible: above 0")
        return self

    def checkpoint_path(self) -> Path:
        """Return the source checkpoint's folder."""
        return Path(self.model.checkpoint).expanduser()

    def tokenizer_path(self) -> Path:
        """Return the tokenizer's folder: the checkpoint's unless the file names another."""
        return Path(self.model.tokenizer).expanduser() if self.model.tokenizer else self.checkpoint_path()
