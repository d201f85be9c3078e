"""What trtllm-build does with a flag in silence, and the flags that are in effect in a finished engine.

The build logs a warning and goes on where flags do not fit together; what it then did stands only in the engine's
config.json. The rules are those of TensorRT-LLM's builder.py and _common.py (1.0 line), read and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardyard.builder.targets.gpu_model import GpuModel
from shardyard.builder.targets.trtllm_flags import FLAGS, FP8_WEIGHTS, Value

__all__ = ["FlagInEffect", "expected_overrides", "flags_in_effect"]


@dataclass(frozen=True)
class FlagInEffect:
    """One flag: what was asked, what the engine has (None: it records nothing), and why the two differ."""

    name: str
    asked: Value
    effect: Value | None
    why: str

    @property
    def changed(self) -> bool:
        """Tell whether the engine has something else than was asked."""
        return self.effect is not None and self.effect != self.asked

    @property
    def row(self) -> tuple[str, str, str, str]:
        """One row of the table."""
        effect = "(not recorded)" if self.effect is None else str(self.effect)
        return self.name, str(self.asked), effect, self.why if self.changed else ""


@dataclass(frozen=True)
class _Facts:
    """What the rules look at."""

    flags: Mapping[str, Value]
    algo: str | None
    kv_algo: str | None
    architecture: str
    tp: int
    sm: int

    def on(self, name: str) -> bool:
        """Tell whether a flag is enabled, by request or by default."""
        return self.flags.get(name, FLAGS[name].default) not in ("disable", None)


#: Architectures whose all-reduce the build can fuse with what follows it.
_REDUCE_FUSION = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")


@dataclass(frozen=True)
class _Rule:
    """Where ``holds``, ``flag`` ends as ``becomes``."""

    flag: str
    becomes: str
    holds: Callable[[_Facts], bool]
    why: str


def _fp8(facts: _Facts) -> bool:
    return facts.on("context_fmha") and facts.algo in FP8_WEIGHTS


_NO_REUSE = "without it there is no cache reuse and no chunked prefill"
#: In the order in which the build goes through them: each sees what those before have left.
_RULES = (
    _Rule(
        "reduce_fusion",
        "disable",
        lambda f: f.tp == 1 or f.architecture not in _REDUCE_FUSION,
        f"needs tp > 1 and one of {', '.join(_REDUCE_FUSION)}",
    ),
    _Rule("user_buffer", "disable", lambda f: not f.on("reduce_fusion"), "needs reduce_fusion"),
    _Rule(
        "norm_quant_fusion",
        "disable",
        lambda f: f.on("reduce_fusion") or f.architecture != "LlamaForCausalLM" or f.algo != "NVFP4",
        "needs LlamaForCausalLM, NVFP4 and no reduce_fusion",
    ),
    _Rule("use_paged_context_fmha", "disable", lambda f: not f.on("context_fmha"), "needs context_fmha"),
    _Rule("use_fp8_context_fmha", "disable", lambda f: not f.on("context_fmha"), "needs context_fmha"),
    _Rule(
        "use_fp8_context_fmha",
        "disable",
        lambda f: f.algo not in FP8_WEIGHTS,
        f"needs weights of {', '.join(FP8_WEIGHTS)}",
    ),
    _Rule(
        "use_paged_context_fmha",
        "disable",
        lambda f: f.algo not in FP8_WEIGHTS and f.kv_algo == "FP8",
        f"an fp8 cache needs fp8 weights for this; {_NO_REUSE}",
    ),
    _Rule("use_fp8_context_fmha", "disable", lambda f: f.sm < 89, "needs SM 89 or newer"),
    _Rule(
        "use_paged_context_fmha",
        "disable",
        lambda f: f.sm < 89 and f.kv_algo == "FP8",
        f"with an fp8 cache it needs SM 89; {_NO_REUSE}",
    ),
    _Rule(
        "use_fp8_context_fmha",
        "disable",
        lambda f: f.on("use_paged_context_fmha") and f.kv_algo != "FP8",
        "with use_paged_context_fmha it needs an fp8 cache",
    ),
    _Rule(
        "use_fp8_context_fmha",
        "enable",
        lambda f: _fp8(f) and f.on("use_paged_context_fmha") and f.kv_algo == "FP8" and f.sm >= 89,
        "use_paged_context_fmha with an fp8 cache needs it",
    ),
    _Rule(
        "use_paged_context_fmha",
        "disable",
        lambda f: f.kv_algo == "INT8",
        f"does not work with an int8 cache; {_NO_REUSE}",
    ),
    _Rule(
        "use_fused_mlp",
        "disable",
        lambda f: f.algo not in (None, "FP8", "MIXED_PRECISION"),
        "not for this quantization",
    ),
)


def expected_overrides(flags: Mapping[str, Value], model: GpuModel, sm: int) -> list[FlagInEffect]:
    """Return the requests that the build will set aside, as far as the rules know."""
    overrides = _predict(flags, model, sm)
    return [FlagInEffect(name, flags[name], *overrides[name]) for name in flags if name in overrides]


def flags_in_effect(
    flags: Mapping[str, Value], engine_config: Mapping[str, Any], model: GpuModel, sm: int
) -> list[FlagInEffect]:
    """Compare what was asked with an engine's config.json, flag by flag."""
    known = _predict(flags, model, sm)
    dtype = str(model.config["dtype"])
    rows = []
    for name, asked in flags.items():
        effect = _recorded(name, asked, engine_config, dtype)
        expected, why = known.get(name, (None, ""))
        rows.append(
            FlagInEffect(name, asked, effect, why if expected == effect else "changed by the build; see the log")
        )
    return rows


def _predict(flags: Mapping[str, Value], model: GpuModel, sm: int) -> dict[str, tuple[Value, str]]:
    config, now = model.config, dict(flags)
    facts = _Facts(now, model.quant_algo, model.kv_algo, config["architecture"], config["mapping"]["tp_size"], sm)
    reasons: dict[str, str] = {}
    for rule in _RULES:
        # A flag that was not asked for is the build's own affair.
        if now.get(rule.flag, rule.becomes) != rule.becomes and rule.holds(facts):
            now[rule.flag], reasons[rule.flag] = rule.becomes, rule.why
    for name, value, why in _clipped(flags):
        now[name], reasons[name] = value, why
    return {name: (now[name], why) for name, why in reasons.items() if now[name] != flags[name]}


def _clipped(flags: Mapping[str, Value]) -> Iterator[tuple[str, Value, str]]:
    """Yield the numbers that the build cuts to what can happen."""
    most = int(flags["max_batch_size"]) * int(flags["max_seq_len"])
    tokens = int(flags["max_num_tokens"])
    if tokens > most:
        yield "max_num_tokens", most, "no step can have more than max_batch_size × max_seq_len tokens"
    optimum = flags.get("opt_num_tokens")
    if optimum is not None and int(optimum) > min(tokens, most):
        yield "opt_num_tokens", min(tokens, most), "cannot be above max_num_tokens"


def _recorded(name: str, asked: Value, engine_config: Mapping[str, Any], dtype: str) -> Value | None:
    """Return a flag's value in config.json in the words of the command line; None where it is not there."""
    build = engine_config["build_config"]
    sections = {
        "build_config": build,
        "plugin_config": build.get("plugin_config") or {},
        "pretrained_config": engine_config["pretrained_config"],
    }
    section = sections[FLAGS[name].section]
    if name not in section:
        return None
    value = section[name]
    if value is None or isinstance(value, bool):
        return "enable" if value else "disable"
    if value == dtype and asked == "auto":
        return "auto"  # the build writes the type that "auto" stood for
    return int(value) if isinstance(value, int | float) else str(value).lower()
