"""The section ``perf`` of the pipeline file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardyard.section import Positive, Section

__all__ = ["LengthSpec", "PerfSpec", "SloSpec"]


class LengthSpec(Section):
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


class SloSpec(Section):
    """Limits that a good request keeps. Where one is given, goodput counts the requests that keep all of them."""

    ttft_ms: Annotated[float | None, Field(gt=0, description="longest time to the first token")] = None
    itl_ms: Annotated[float | None, Field(gt=0, description="longest mean time between tokens")] = None
    request_latency_ms: Annotated[float | None, Field(gt=0, description="longest time to the whole answer")] = None


class PerfSpec(Section):
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
