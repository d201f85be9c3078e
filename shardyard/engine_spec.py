"""The section ``engine`` of the pipeline file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardyard.section import Positive, Section

__all__ = ["EngineSpec", "LoraSpec"]


class LoraSpec(Section):
    """What the CPU engine keeps ready for LoRA adapters; which ones there are is said at launch: serve.lora_dir."""

    max_rank: Annotated[int, Field(ge=0, description="largest rank of an adapter; 0: the engine takes none")] = 0
    max_adapters: Annotated[Positive, Field(description="adapters in memory, and so in use at a time")] = 4


class EngineSpec(Section):
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
    balance_stages: Annotated[
        bool,
        Field(description="CPU engine: give pipeline stages as many layers as make the slowest fastest, head included"),
    ] = True
    threads: Annotated[Positive | None, Field(description="threads per rank; default: cores / ranks")] = None
    lora: LoraSpec = LoraSpec()
    speculative: Annotated[
        Literal["none", "prompt_lookup", "draft_model"],
        Field(
            description="CPU engine: draft tokens and verify them in one step; prompt_lookup: what followed the same "
            "tokens before; draft_model: what engine.draft says"
        ),
    ] = "none"
    draft: Annotated[
        str | None, Field(description="folder with the checkpoint of a smaller model that drafts; same vocabulary")
    ] = None
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
    build_flags: dict[str, str | int | bool] = Field(
        default_factory=dict,
        description="GPU targets: further trtllm-build flags by name, e.g. {multiple_profiles: enable}",
    )
    build_retries: Annotated[int, Field(ge=0, description="GPU targets: times that a failed rank is built again")] = 1

    @model_validator(mode="after")
    def _drafts(self) -> EngineSpec:
        if (self.speculative == "draft_model") != (self.draft is not None):
            raise ValueError(
                f"speculative={self.speculative} and draft={self.draft} do not go together; possible: "
                "speculative=draft_model with draft naming a checkpoint's folder, or neither"
            )
        if self.draft and self.target != "cpu":
            raise ValueError("draft is the CPU engine's; possible for GPU targets: build_flags")
        return self

    @model_validator(mode="after")
    def _beams(self) -> EngineSpec:
        if self.target == "cpu" and (self.max_beam_width or 1) > self.max_batch_size:
            raise ValueError(
                f"max_beam_width={self.max_beam_width} is above max_batch_size; possible: 1 to {self.max_batch_size}"
            )
        return self
