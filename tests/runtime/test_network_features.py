"""Every feature that families differ in: small random networks on one rank against plain numpy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shardyard.runtime.kv_cache import BlockAllocator
from shardyard.runtime.network import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    LayerSpec,
    MlpSpec,
    NetworkSpec,
    RopeSpec,
)
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.request import Request
from shardyard.runtime.scheduler import Scheduler
from shardyard.runtime.sequence import Sequence
from shardyard.runtime.world import World

HIDDEN, INNER, HEADS, KV_HEADS, SIZE, VOCAB, POSITIONS = 32, 48, 4, 2, 16, 67, 160
Arrays = dict[str, Any]

PLAIN = NetworkSpec(
    layers=(LayerSpec(), LayerSpec()),
    hidden=HIDDEN,
    block=BlockSpec(),
    norm="rms",
    norm_epsilon=1e-5,
    attention=AttentionSpec(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_size=SIZE,
        scale=SIZE**-0.5,
        softcap=None,
        norm=False,
        qkv_bias=False,
        dense_bias=False,
        rope=RopeSpec(SIZE, 10000.0, None, POSITIONS),
    ),
    mlp=MlpSpec("gated", INNER, "silu", False),
    experts=None,
    embedding_scale=1.0,
    learned_positions=False,
    logit_softcap=None,
    vocab=VOCAB,
    vocab_rows=VOCAB,
    max_positions=POSITIONS,
    tp=1,
    tp_rank=0,
    pp=1,
    stage=0,
    embedding="whole",
    tied=False,
    weights="float32",
)
EXPERTS = ExpertsSpec(8, 0, 8, 2, True, 24, 0, "silu")
SLOPES = (0.5, 0.03, 0.2, 0.003)
SPARSE = (LayerSpec("experts"), LayerSpec("experts"))


def random_arrays(spec: NetworkSpec) -> Arrays:
    """Return weights of the network by TensorRT-LLM's names, so large that every part of it matters."""
    random, arrays = np.random.default_rng(5), {}
    attention, mlp, experts = spec.attention, spec.mlp, spec.experts

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        arrays[name] = (random.normal(size=shape) * scale / math.sqrt(shape[-1])).astype(np.float32)

    def vector(name: str, size: int, centre: float = 0.0) -> None:
        arrays[name] = (centre + 0.3 * random.normal(size=size)).astype(np.float32)

    def norm(name: str, size: int = HIDDEN) -> None:
        vector(f"{name}.weight", size, 1.0)
        if spec.norm == "layer":
            vector(f"{name}.bias", size)

    def linear(name: str, rows: int, columns: int, bias: bool, scale: float = 2.0) -> None:
        put(f"{name}.weight", rows, columns, scale=scale)
        if bias:
            vector(f"{name}.bias", rows)

    put("transformer.vocab_embedding.weight", VOCAB, HIDDEN, scale=5.0)
    put("lm_head.weight", VOCAB, HIDDEN, scale=4.0)
    if spec.learned_positions:
        put("transformer.position_embedding.weight", POSITIONS, HIDDEN, scale=5.0)
    norm("transformer.ln_f")
    width, kv_width = attention.heads * SIZE, attention.kv_heads * SIZE
    for index, layer in enumerate(spec.layers):
        at = f"transformer.layers.{index}."
        for name in {value for value in vars(spec.block).values() if isinstance(value, str)}:
            norm(at + name)
        linear(f"{at}attention.qkv", width + 2 * kv_width, HIDDEN, attention.qkv_bias)
        linear(f"{at}attention.dense", HIDDEN, width, attention.dense_bias)
        if attention.norm:
            norm(f"{at}attention.q_layernorm", SIZE)
            norm(f"{at}attention.k_layernorm", SIZE)
        if layer.feed_forward == "mlp":
            linear(f"{at}mlp.fc", INNER * (2 if mlp.form == "fused" else 1), HIDDEN, mlp.bias)
            linear(f"{at}mlp.proj", HIDDEN, INNER, mlp.bias)
            if mlp.form == "gated":
                linear(f"{at}mlp.gate", INNER, HIDDEN, mlp.bias)
        elif experts:
            put(f"{at}mlp.router.weight", experts.total, HIDDEN, scale=2.0)
            put(f"{at}mlp.fc.weight", experts.local, 2 * experts.inner, HIDDEN, scale=2.0)
            put(f"{at}mlp.proj.weight", experts.local, HIDDEN, experts.inner, scale=2.0)
            if experts.shared_inner:
                put(f"{at}mlp.shared_expert.fc.weight", 2 * experts.shared_inner, HIDDEN, scale=2.0)
                put(f"{at}mlp.shared_expert.proj.weight", HIDDEN, experts.shared_inner, scale=2.0)
                put(f"{at}mlp.shared_expert_gate.weight", 1, HIDDEN, scale=2.0)
    return arrays


ERF = np.vectorize(math.erf)
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


class Numpy:
    """The network in float64; whole sequences, no cache."""

    def __init__(self, spec: NetworkSpec, arrays: Arrays) -> None:
        self.spec, self.arrays = spec, {name: array.astype(np.float64) for name, array in arrays.items()}

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", 0.0)

    def norm(self, x: Any, name: str | None) -> Any:
        if name is None:
            return x
        if self.spec.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.spec.norm_epsilon)
        return x * self.arrays[f"{name}.weight"] + self.arrays.get(f"{name}.bias", 0.0)

    def logits(self, tokens: list[int]) -> Any:
        spec, count = self.spec, len(tokens)
        x = self.arrays["transformer.vocab_embedding.weight"][tokens] * spec.embedding_scale
        if spec.learned_positions:
            x = x + self.arrays["transformer.position_embedding.weight"][:count]
        for index in range(len(spec.layers)):
            x = self.layer(x, index)
        y = self.norm(x, "transformer.ln_f") @ self.arrays["lm_head.weight"].T
        return spec.logit_softcap * np.tanh(y / spec.logit_softcap) if spec.logit_softcap else y

    def layer(self, x: Any, index: int) -> Any:
        block, at = self.spec.block, f"transformer.layers.{index}."

        def half(x: Any, before: str, part: Callable[[Any, int], Any], after: str | None) -> Any:
            return self.norm(part(self.norm(x, at + before), index), after and at + after)

        first = x + half(x, block.before_attention, self.attention, block.after_attention)
        second = half(x if block.parallel else first, block.before_mlp, self.feed_forward, block.after_mlp)
        return first + second

    def attention(self, x: Any, index: int) -> Any:
        spec, at, count = self.spec.attention, f"transformer.layers.{index}.attention.", len(x)
        qkv = self.linear(x, f"{at}qkv").reshape(count, -1, SIZE)
        q, k, v = np.split(qkv, [spec.heads, spec.heads + spec.kv_heads], axis=1)
        if spec.norm:
            q, k = self.norm(q, f"{at}q_layernorm"), self.norm(k, f"{at}k_layernorm")
        if spec.rope:
            q, k = self.rotate(q, spec.rope), self.rotate(k, spec.rope)
        k, v = (np.repeat(y, spec.heads // spec.kv_heads, axis=1) for y in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * spec.scale
        if spec.softcap:
            scores = spec.softcap * np.tanh(scores / spec.softcap)
        back = np.arange(count)[:, None] - np.arange(count)
        if spec.alibi:
            scores = scores - np.array(spec.alibi)[:, None, None] * back
        window = self.spec.layers[index].window or count
        scores = np.where((back >= 0) & (back < window), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khd->qhd", shares, v).reshape(count, -1), f"{at}dense")

    def rotate(self, x: Any, rope: RopeSpec) -> Any:
        half = rope.dim // 2
        angles = np.arange(len(x))[:, None, None] * rope.theta ** (-np.arange(half) / half)
        first, second, rest = x[..., :half], x[..., half : rope.dim], x[..., rope.dim :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)

    def feed_forward(self, x: Any, index: int) -> Any:
        at = f"transformer.layers.{index}.mlp"
        return getattr(self, self.spec.layers[index].feed_forward)(x, at)

    def mlp(self, x: Any, at: str) -> Any:
        spec, act = self.spec.mlp, ACTIVATIONS[self.spec.mlp.activation]
        y = self.linear(x, f"{at}.fc")
        if spec.form == "fused":
            return self.linear(y[:, :INNER] * act(y[:, INNER:]), f"{at}.proj")
        y = act(y) * self.linear(x, f"{at}.gate") if spec.form == "gated" else act(y)
        return self.linear(y, f"{at}.proj")

    def experts(self, x: Any, at: str) -> Any:
        spec, arrays = self.spec.experts, self.arrays
        assert spec is not None

        def expert(row: Any, fc: Any, proj: Any) -> Any:
            up, gate = np.split(fc @ row, 2)
            return proj @ (up * ACTIVATIONS[spec.activation](gate))

        out = np.zeros_like(x)
        for token, row in enumerate(x):
            scores = np.exp(arrays[f"{at}.router.weight"] @ row)
            shares = scores / scores.sum()
            chosen = np.argsort(-shares)[: spec.top_k]
            total = shares[chosen].sum() if spec.renormalize else 1.0
            for number in set(chosen) & set(range(spec.first, spec.first + spec.local)):
                own = number - spec.first
                answer = expert(row, arrays[f"{at}.fc.weight"][own], arrays[f"{at}.proj.weight"][own])
                out[token] += shares[number] / total * answer
            if spec.shared_inner:
                gate = 1 / (1 + np.exp(-(arrays[f"{at}.shared_expert_gate.weight"][0] @ row)))
                shared = (arrays[f"{at}.shared_expert.{name}.weight"] for name in ("fc", "proj"))
                out[token] += gate * expert(row, *shared)
        return out


def with_attention(**changes: Any) -> NetworkSpec:
    return replace(PLAIN, attention=replace(PLAIN.attention, **changes))


def with_mlp(**changes: Any) -> NetworkSpec:
    return replace(PLAIN, mlp=replace(PLAIN.mlp, **changes))


def with_experts(**changes: Any) -> NetworkSpec:
    return replace(PLAIN, layers=SPARSE, experts=replace(EXPERTS, **changes))


CASES = {
    "llama": PLAIN,
    "biases": replace(with_attention(qkv_bias=True, dense_bias=True), mlp=replace(PLAIN.mlp, bias=True)),
    "layer_norm": replace(PLAIN, norm="layer"),
    "gelu": with_mlp(activation="gelu"),
    "gelu_tanh": with_mlp(activation="gelu_tanh"),
    "relu": with_mlp(activation="relu", form="plain"),
    "plain": with_mlp(form="plain", bias=True),
    "fused": with_mlp(form="fused"),
    "head_norms": with_attention(norm=True),
    "partial_rotation": with_attention(rope=RopeSpec(4, 10000.0, None, POSITIONS)),
    "learned": replace(with_attention(rope=None), learned_positions=True, norm="layer"),
    "parallel": replace(PLAIN, block=BlockSpec(True), norm="layer", mlp=MlpSpec("plain", INNER, "gelu", True)),
    "parallel_one_norm": replace(with_attention(dense_bias=True), block=BlockSpec(True, before_mlp="input_layernorm")),
    "parallel_experts": replace(with_experts(), block=BlockSpec(True)),
    "sandwich": replace(PLAIN, block=BlockSpec(False, "a", "b", "c", "d")),
    "score_cap": with_attention(softcap=2.0),
    "score_cap_and_window": replace(with_attention(softcap=2.0, kv_heads=1), layers=(LayerSpec(window=9), LayerSpec())),
    "alibi": with_attention(rope=None, alibi=SLOPES),
    "alibi_and_window": replace(with_attention(rope=None, alibi=SLOPES), layers=(LayerSpec(window=9), LayerSpec())),
    "alibi_and_cap": with_attention(rope=None, alibi=SLOPES, softcap=2.0),
    "logit_cap": replace(PLAIN, logit_softcap=3.0),
    "embedding_scale": replace(PLAIN, embedding_scale=math.sqrt(HIDDEN)),
    "scale": with_attention(scale=0.4),
    "one_kv_head": with_attention(kv_heads=1),
    "all_kv_heads": with_attention(kv_heads=HEADS),
    "window": replace(PLAIN, layers=(LayerSpec(window=7), LayerSpec())),
    "window_of_one": replace(PLAIN, layers=(LayerSpec(window=1), LayerSpec(window=40))),
    "wide_window": replace(PLAIN, layers=(LayerSpec(window=1000), LayerSpec(window=33))),
    "experts": with_experts(),
    "experts_as_they_come": with_experts(renormalize=False),
    "one_expert_each": with_experts(top_k=1, renormalize=False),
    "all_experts": with_experts(top_k=8),
    "shared_expert": with_experts(shared_inner=40, renormalize=False),
    "half_of_the_experts": with_experts(first=4, local=4, top_k=1, renormalize=False),
    "mixed_layers": replace(with_experts(shared_inner=40), layers=(LayerSpec("experts"), LayerSpec())),
    "gelu_experts": with_experts(activation="gelu"),
}


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def load(spec: NetworkSpec, arrays: Arrays) -> RankModel:
    return RankModel(spec, arrays, World(1, 1), RankSettings.exact())


def relative(got: Any, wanted: Any) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES)
def test_one_prompt(case: str) -> None:
    spec = CASES[case]
    arrays = random_arrays(spec)
    exact, model = Numpy(spec, arrays), load(spec, arrays)
    for prompt in (tokens(90), *(tokens(1, seed) for seed in (1, 2, 3))):
        assert relative(model.logits(prompt), exact.logits(prompt)) < 2e-5


@pytest.mark.parametrize(
    "case",
    [
        *("layer_norm", "gelu", "gelu_tanh", "fused", "partial_rotation", "parallel", "sandwich", "score_cap"),
        *(
            "logit_cap",
            "embedding_scale",
            "scale",
            "window",
            "experts_as_they_come",
            "one_expert_each",
            "shared_expert",
        ),
    ],
)
def test_the_feature_matters(case: str) -> None:
    """The weights of a case give other logits without its feature, so that leaving it out would be seen."""
    without = {
        "gelu_tanh": CASES["gelu"],
        "parallel": replace(CASES["parallel"], block=BlockSpec()),
        "sandwich": replace(CASES["sandwich"], block=BlockSpec(False, "a", None, "c", None)),
        "fused": replace(CASES["fused"], mlp=MlpSpec("fused", INNER, "gelu", False)),
        "experts_as_they_come": CASES["experts"],
        "one_expert_each": with_experts(top_k=1),
        "shared_expert": CASES["experts_as_they_come"],
    }.get(case, PLAIN)
    arrays, prompt = random_arrays(CASES[case]), tokens(30)
    assert relative(Numpy(CASES[case], arrays).logits(prompt), Numpy(without, arrays).logits(prompt)) > 1e-4


@pytest.mark.parametrize(
    "case",
    [
        "window",
        "wide_window",
        "experts",
        "mixed_layers",
        "learned",
        "score_cap_and_window",
        "alibi",
        "alibi_and_window",
    ],
)
def test_chunks_beside_answers(case: str) -> None:
    """Prompts in chunks of at most 16 tokens per step, beside sequences that decode."""
    spec = CASES[case]
    arrays = random_arrays(spec)
    exact, model = Numpy(spec, arrays), load(spec, arrays)
    scheduler, unfinished = Scheduler(BlockAllocator(64, 32), 4, 16), []
    for number, length in enumerate((5, 70, 33)):
        prompt = tokens(length, number)
        unfinished.append(Sequence(number, Request(prompt, 12), lambda output: None, list(prompt)))
        scheduler.add(unfinished[-1])
    while unfinished:
        step = scheduler.next_step()
        assert step is not None
        logits = model.run(step.plan)
        assert logits is not None
        for row, sequence in zip(logits, step.rows, strict=True):
            assert relative(row, exact.logits(sequence.tokens)[-1]) < 2e-5
            if sequence.append(int(row.argmax())):
                unfinished.remove(sequence)
                scheduler.remove(sequence)
