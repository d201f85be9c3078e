"""What the runtime's tests share: engines made on the spot, a float64 reference, MPI worlds of small programs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.build import build
from shardyard.builder.convert import convert
from shardyard.console import Console
from shardyard.mpi import child_environment, mpirun_command
from shardyard.runtime.executor import Executor
from shardyard.runtime.network import AttentionSpec, BlockSpec, KvType, LayerSpec, MlpSpec, NetworkSpec, RopeSpec
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.request import Output, Request
from shardyard.runtime.world import World
from shardyard.spec import Pipeline

QUIET = Console(quiet=True)


class Reference:
    """A decoder in float64 numpy, straight from a Hugging Face checkpoint; whole sequences, no cache."""

    def __init__(self, folder: Path, weights: dict[str, Any] | None = None) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = weights or load_file(folder / "model.safetensors")
        self.size = self.config["head_dim"]

    def weight(self, name: str) -> Any:
        return self.weights[name].astype(np.float64)

    def linear(self, x: Any, name: str) -> Any:
        y = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.weights else y

    def norm(self, x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weight(name)

    def angles(self, length: int) -> Any:
        frequency = self.config["rope_theta"] ** -(np.arange(0, self.size, 2) / self.size)
        scaling = self.config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind == "linear":
            frequency = frequency / scaling["factor"]
        if kind == "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
            blend = (turns - low) / (high - low)
            mixed = (1 - blend) * frequency / scaling["factor"] + blend * frequency
            slow = np.where(turns < low, frequency / scaling["factor"], mixed)
            frequency = np.where(turns > high, frequency, slow)
        return np.arange(length)[:, None, None] * np.concatenate([frequency, frequency])

    def logits(self, tokens: list[int]) -> Any:
        """Return float64 [tokens, vocab]."""
        config, length = self.config, len(tokens)
        angles = self.angles(length)
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        hidden = self.weight("model.embed_tokens.weight")[tokens]

        def rotate(x: Any) -> Any:
            half = self.size // 2
            return x * np.cos(angles) + np.concatenate([-x[..., half:], x[..., :half]], -1) * np.sin(angles)

        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x = self.norm(hidden, f"{at}input_layernorm.weight")
            q, k, v = (self.linear(x, f"{at}self_attn.{n}_proj").reshape(length, -1, self.size) for n in "qkv")
            k, v = (np.repeat(y, heads // kv_heads, axis=1) for y in (rotate(k), v))
            scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(self.size)
            scores += np.triu(np.full((length, length), -np.inf), 1)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            mixed = np.einsum("hqk,khd->qhd", share, v).reshape(length, -1)
            hidden = hidden + self.linear(mixed, f"{at}self_attn.o_proj")
            x = self.norm(hidden, f"{at}post_attention_layernorm.weight")
            gate = self.linear(x, f"{at}mlp.gate_proj")
            gate = gate / (1 + np.exp(-gate)) * self.linear(x, f"{at}mlp.up_proj")
            hidden = hidden + self.linear(gate, f"{at}mlp.down_proj")
        head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
        return self.norm(hidden, "model.norm.weight") @ self.weight(head).T

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="session")
def make_pipeline(make_checkpoint: Callable[..., Path]) -> Callable[..., Pipeline]:
    """Return the pipeline of a tiny checkpoint; keyword arguments replace sections."""

    def make(family: str = "llama", tp: int = 1, pp: int = 1, **more: Any) -> Pipeline:
        engine = {"max_batch_size": 8, "max_seq_len": 256, "max_num_tokens": 48, **more.pop("engine", {})}
        parallel = {"tp": tp, "pp": pp, **more.pop("parallel", {})}
        checkpoint = more.pop("checkpoint", None) or make_checkpoint("--family", family)
        raw = {"name": "t", "model": {"checkpoint": str(checkpoint)}, "parallel": parallel, "engine": engine, **more}
        return Pipeline.model_validate(raw)

    return make


@pytest.fixture(scope="session")
def like_llama(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that agrees with the tiny Llama now and then: the same with noise in its weights."""
    source, folder = make_checkpoint("--family", "llama"), tmp_path_factory.mktemp("noisy")
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    random, weights = np.random.default_rng(4), load_file(source / "model.safetensors")
    noisy = {
        name: (array + 0.15 * array.std() * random.normal(size=array.shape)).astype(array.dtype)
        for name, array in weights.items()
    }
    save_file(noisy, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_engine(
    make_pipeline: Callable[..., Pipeline], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Convert and build a tiny checkpoint; the same arguments are built once per session. Returns the engine folder."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", tp: int = 1, pp: int = 1, **more: Any) -> Path:
        key = repr((family, tp, pp, more))
        if key not in made:
            pipeline, work = make_pipeline(family, tp, pp, **more), tmp_path_factory.mktemp("engine")
            convert(pipeline, work / "checkpoint", QUIET)
            build(pipeline, work / "checkpoint", work / "engine", QUIET)
            made[key] = work / "engine"
        return made[key]

    return make


class Collected:
    """Outputs of requests: call ``on_output`` with each, then ``wait`` for the last."""

    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.last: list[Output | None] = [None] * count
        self.log_probs: list[list[float]] = [[] for _ in range(count)]
        self._left, self._all = count, threading.Event()

    def taker(self, index: int) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            self.tokens[index] += output.tokens
            self.log_probs[index] += output.log_probs or []
            if output.finished:
                self.last[index] = output
                self._left -= 1
                if not self._left:
                    self._all.set()

        return take

    def wait(self) -> Collected:
        if not self._all.wait(60):
            raise TimeoutError(f"{self._left} request(s) unfinished")
        return self


@pytest.fixture(scope="session")
def generate() -> Callable[[Executor, list[Request]], Collected]:
    """Run requests together and return what came of them."""

    def run(executor: Executor, requests: list[Request]) -> Collected:
        collected = Collected(len(requests))
        for index, request in enumerate(requests):
            executor.submit(request, collected.taker(index))
        return collected.wait()

    return run


@contextmanager
def _executing(engine: Path, **more: Any) -> Iterator[Executor]:
    executor = Executor(engine, **more)
    try:
        yield executor
    finally:
        executor.shutdown()


@pytest.fixture(scope="session")
def executing() -> Callable[..., AbstractContextManager[Executor]]:
    """An engine of one rank in this process, for the length of a with block."""
    return _executing


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program of tests/runtime/worlds over MPI; what still runs when the test ends is killed."""
    started = []

    def start(
        ranks: int, program: str, *args: object, env: dict[str, str] | None = None, nested: bool = False
    ) -> subprocess.Popen[str]:
        path = Path(__file__).parent / "worlds" / program
        command = [sys.executable, "-m", "mpi4py", str(path), *map(str, args)]
        # As in Triton, whose model is a child of the process that mpirun starts.
        lead = ["sh", "-c", f"{shlex.join(command)}; exec sleep 60"] if nested else command
        process = subprocess.Popen(
            mpirun_command((1, lead), *([(ranks - 1, command)] if ranks > 1 else [])),
            cwd=tmp_path,
            env=child_environment({"TMPDIR": str(tmp_path), **(env or {})}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # mpirun ends its ranks.
        process.communicate(timeout=20)


@pytest.fixture
def run_world(world: Callable[..., subprocess.Popen[str]]) -> Callable[..., Any]:
    """Run a program over MPI and return the JSON that it printed."""

    def run(ranks: int, program: str, *args: object, env: dict[str, str] | None = None) -> Any:
        process = world(ranks, program, *args, env=env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., RankModel]:
    """Compile a random network of two layers that runs a step in a tenth of a millisecond, with that many blocks."""

    def make(blocks: int, kv_cache: KvType = "float32", softcap: float | None = None) -> RankModel:
        attention = AttentionSpec(2, 1, 16, 0.25, softcap, False, False, False, RopeSpec(16, 1e4, None, 512))
        spec = NetworkSpec(
            layers=(LayerSpec(), LayerSpec()), hidden=16, block=BlockSpec(), norm="rms", norm_epsilon=1e-5,
            attention=attention, mlp=MlpSpec("gated", 16, "silu", False), experts=None, embedding_scale=1.0,
            learned_positions=False, logit_softcap=None, vocab=61, vocab_rows=61, max_positions=512, tp=1, tp_rank=0,
            pp=1, stage=0, embedding="whole", tied=False, weights="float32",
        )  # fmt: skip
        shapes = {"attention.qkv": (64, 16), "attention.dense": (16, 32)} | dict.fromkeys(
            ("mlp.fc", "mlp.gate", "mlp.proj"), (16, 16)
        )
        norms = ("input_layernorm", "post_layernorm")
        random = np.random.default_rng(1)
        arrays = {f"{name}.weight": random.normal(size=(61, 16)) for name in ("transformer.vocab_embedding", "lm_head")}
        arrays["transformer.ln_f.weight"] = np.ones(16)
        for layer in ("transformer.layers.0.", "transformer.layers.1."):
            arrays |= {f"{layer}{name}.weight": random.normal(size=shape) / 2 for name, shape in shapes.items()}
            arrays |= {f"{layer}{name}.weight": np.ones(16) for name in norms}
        settings = RankSettings("float32", kv_cache, blocks, quantize_activations=False)
        floats = {name: array.astype(np.float32) for name, array in arrays.items()}
        return RankModel(spec, floats, World(1, 1), settings)

    return make
