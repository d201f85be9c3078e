"""What a request may say."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["SamplingParams"]


@dataclass(kw_only=True)
class SamplingParams:
    """Fields and types of 1.0 to 1.2 that this project could use; a value of another type is an error."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: list[str] | None = None
    bad_token_ids: list[int] | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    exclude_input_from_output: bool = True
    return_perf_metrics: bool = False
    ignore_eos: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        types = {"int": int, "float": float, "bool": bool, "list[int]": list, "list[str]": list}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and type(value) is not types[str(field.type).removesuffix(" | None")]:
                raise TypeError(f"{field.name} is a {type(value).__name__}")
        self.best_of = self.best_of or self.n
        if self.best_of < self.n:
            raise ValueError("best_of is below n")
        if self.best_of > 1 and self.top_k in (None, 1) and self.top_p in (None, 0.0):
            raise ValueError("greedy decoding returns one answer")
        if self.stop is not None and self.end_id is not None:
            raise RuntimeError("stop strings become tokens with the tokenizer's end_id alone")
