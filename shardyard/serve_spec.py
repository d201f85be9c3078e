"""The section ``serve`` of the pipeline file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardyard.gpu_spec import GpuServeSpec
from shardyard.log import LogForm
from shardyard.section import Port, Positive, Section
from shardyard.tls_spec import TlsSpec

__all__ = ["ServeSpec"]


class ServeSpec(Section):
    """How the endpoint is launched."""

    host: Annotated[str, Field(description="address that the ports bind to")] = "127.0.0.1"
    http_port: Annotated[Port, Field(description="0 takes a free port")] = 8000
    grpc_port: Annotated[Port, Field(description="0 takes a free port")] = 8001
    metrics_port: Annotated[Port, Field(description="0 takes a free port")] = 8002
    max_queue_size: Annotated[int, Field(ge=0, description="requests that may wait; 0: no limit")] = 128
    max_prompt_bytes: Annotated[
        Positive, Field(description="most bytes of a prompt, and of each list of words: what is tokenized at most")
    ] = 1 << 20
    max_words: Annotated[
        Positive, Field(description="most stop words of a request; as many bad words, and words with a bias")
    ] = 256
    log: Annotated[
        LogForm,
        Field(description="a line in logs/events.log for each request, and for each process's start and end"),
    ] = "none"
    log_texts: Annotated[bool, Field(description="prompts and answers in that log too")] = False
    otlp_endpoint: Annotated[
        str | None,
        Field(
            description="OpenTelemetry collector that takes spans of requests, e.g. http://localhost:4318 (OTLP/HTTP)"
        ),
    ] = None
    preprocessing_instances: Annotated[
        Positive, Field(description="processes of preprocessing, and threads of the engine's for long texts")
    ] = 1
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
    launcher: Annotated[
        Literal["auto", "mpirun", "slurm"],
        Field(description="what starts the ranks; auto: Slurm inside of an allocation where it has PMIx, else mpirun"),
    ] = "auto"
    hosts: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="NAME:RANKS of each host, this one first; empty: this one, or Slurm's nodes",
        ),
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
    grpc_front: Annotated[
        bool,
        Field(description="clients' gRPC ends at a process before Triton: what they cut, Triton never sees"),
    ] = True
    http_front: Annotated[
        bool, Field(description="clients' HTTP passes that process too: Triton has no limit on what they send")
    ] = True
    text_shortcut: Annotated[
        bool,
        Field(description="text of answers streamed over gRPC comes to that process without passing Triton"),
    ] = True
    max_request_mib: Annotated[
        int, Field(ge=1, le=2047, description="largest request, where grpc_front and http_front are on")
    ] = 64
    max_connections: Annotated[
        Positive,
        Field(description="connections of clients, gRPC and HTTP together, where grpc_front and http_front are on"),
    ] = 1000
    abandoned_timeout_s: Annotated[
        float,
        Field(gt=0, description="seconds that a model of yours may answer a gRPC client that is gone, until cancelled"),
    ] = 60.0
    tls: TlsSpec = TlsSpec()
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

    @property
    def sees_clients_go(self) -> bool:
        """Whether the front tells the engine of every client that goes before its answer has ended."""
        return self.grpc_front and self.http_front

    @property
    def shortens(self) -> bool:
        """Whether text of streamed answers goes past Triton: it is made beside the engine, and both fronts are on."""
        return self.text_shortcut and self.sees_clients_go

    def without_front(self) -> ServeSpec:
        """Return the same for an endpoint of which Triton serves all by itself."""
        return self.model_copy(update={"grpc_front": False, "http_front": False})

    @model_validator(mode="after")
    def _encrypted(self) -> ServeSpec:
        if self.tls.cert and not self.grpc_front:
            raise ValueError("tls is the front's; possible: grpc_front=true, or no tls")
        return self
