"""What the pipeline file says about TensorRT-LLM's C++ backend: settings of its Triton model and of its launch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shardyard.section import Positive, Section

__all__ = ["GPU_WORKER", "IMAGE", "GpuServeSpec"]

#: Where NVIDIA's images have Triton.
IMAGE = Path("/opt/tritonserver")

#: Below it, what an orchestrator starts for each rank.
GPU_WORKER = Path("backends/tensorrtllm/trtllmExecutorWorker")


class GpuServeSpec(Section):
    """Settings of the GPU engine's Triton model; what is left out is TensorRT-LLM's default."""

    mode: Annotated[
        Literal["leader", "orchestrator"],
        Field(description="leader: each rank is a tritonserver; orchestrator: one, which starts a worker per GPU"),
    ] = "leader"
    server: Annotated[
        str, Field(min_length=1, description="folder with bin/tritonserver and the C++ backend, as in NVIDIA's images")
    ] = str(IMAGE)
    device_ids: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(strict=False, description="each rank's GPU, by number on its host; empty: 0, 1, 2 …"),
    ] = ()
    participant_ids: Annotated[
        tuple[Positive, ...],
        Field(strict=False, description="orchestrator over ranks that run already: each one's rank in MPI's world"),
    ] = ()
    num_nodes: Annotated[Positive, Field(description="hosts that the ranks are spread over")] = 1
    max_beam_width: Annotated[
        Positive, Field(description="most beams of a request; the engine's build is the limit")
    ] = 1
    enable_chunked_context: Annotated[
        bool, Field(description="long prompts in chunks; the engine needs use_paged_context_fmha")
    ] = True
    kv_cache_host_memory_bytes: Annotated[
        int, Field(ge=0, description="memory of the host that blocks of the cache are moved to; 0: none")
    ] = 0
    decoupled: Annotated[
        bool, Field(description="LLM API: false answers each request at once, so that clients' infer works; no streams")
    ] = True
    max_queue_delay_us: Annotated[int, Field(ge=0, description="longest wait for a fuller batch, in microseconds")] = 0
    decoding_mode: Annotated[
        Literal["top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "lookahead", "eagle"] | None,
        Field(description="default: by the beam width; the last three need an engine built for them"),
    ] = None
    lookahead: Annotated[
        tuple[Positive, Positive, Positive] | None,
        Field(strict=False, description="lookahead: size of the window, of the n-grams, of the verification set"),
    ] = None
    guided_decoding_backend: Annotated[
        Literal["xgrammar"] | None, Field(description="what keeps answers to their guides; default: guides are refused")
    ] = None
    xgrammar_tokenizer_info: Annotated[
        str | None, Field(description="the file that guided decoding needs: TensorRT-LLM's tool makes it")
    ] = None

    @property
    def image(self) -> Path:
        """The folder ``server``, as an absolute path."""
        return Path(self.server).expanduser().absolute()
