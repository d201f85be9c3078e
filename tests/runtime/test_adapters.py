"""Adapters from PEFT folders: beside merged weights in float64, on every grid, and through a whole engine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardyard.builder.build import build
from shardyard.builder.convert import convert, convert_checkpoint
from shardyard.console import Console
from shardyard.errors import PipelineError, RequestError
from shardyard.runtime.executor import Executor
from shardyard.runtime.pace import Pace
from shardyard.runtime.request import Output, Request
from shardyard.spec import ParallelSpec

LORA = {"lora": {"max_rank": 8, "max_adapters": 2}}
#: A module of a layer → inputs and outputs; of the tiny checkpoints.
WIDTHS = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (128, 32),
    "self_attn.v_proj": (128, 32),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (128, 352),
    "mlp.up_proj": (128, 352),
    "mlp.down_proj": (352, 128),
}
LAYERS, KV_HEADS = 5, 2


def tokens(count: int) -> list[int]:
    return np.random.default_rng(count).integers(6, 515, count).tolist()


def write_adapter(folder: Path, rank: int, modules: Any = tuple(WIDTHS), **settings: Any) -> Path:
    """Write a random adapter as PEFT does."""
    draws = np.random.default_rng(rank)
    arrays = {}
    for layer in range(LAYERS):
        for module in modules:
            inputs, outputs = WIDTHS[module]
            at = f"base_model.model.model.layers.{layer}.{module}"
            arrays[f"{at}.lora_A.weight"] = draws.normal(0, 0.1, (rank, inputs)).astype(np.float32)
            arrays[f"{at}.lora_B.weight"] = draws.normal(0, 0.1, (outputs, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(arrays, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Return the checkpoint's weights with W + B · A · alpha / rank, in float64."""
    weights = {name: array.astype(np.float64) for name, array in load_file(checkpoint / "model.safetensors").items()}
    arrays = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name in arrays:
        if "lora_A" in name:
            a, b = arrays[name].astype(np.float64), arrays[name.replace("lora_A", "lora_B")].astype(np.float64)
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[target] += b @ a * config["lora_alpha"] / config["r"]
    return weights


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters 3, 40 and 2⁶⁴ - 1, of ranks 4, 8 and 2; the last changes some modules only."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "3", 4)
    write_adapter(folder / "40", 8)
    write_adapter(folder / str(2**64 - 1), 2, ("self_attn.v_proj", "mlp.up_proj"))
    return folder


@pytest.fixture(scope="module")
def expected(reference: Any, make_checkpoint: Any, adapters: Path) -> Callable[..., Any]:
    """Return the reference of a family with an adapter merged into its weights; None: without."""

    def of(family: str, id: int | None) -> Any:
        folder = make_checkpoint("--family", family)
        return reference(folder, None if id is None else merged(folder, adapters / str(id)))

    return of


@pytest.fixture(scope="module")
def executor(make_engine: Callable[..., Path], adapters: Path, executing: Any) -> Iterator[Executor]:
    with executing(make_engine(engine=LORA), lora_dir=adapters) as running:
        yield running


@pytest.mark.parametrize(
    ("family", "tp", "pp"), [("qwen2", 1, 1), ("llama", 2, 1), ("qwen2", 2, 2), ("llama", 4, 1)], ids=str
)
def test_logits_are_those_of_merged_weights(
    run_world: Any, make_checkpoint: Any, adapters: Path, expected: Any, tmp_path: Path, family: str, tp: int, pp: int
) -> None:
    (tmp_path / "unified").mkdir()
    convert_checkpoint(make_checkpoint("--family", family), tmp_path / "unified", ParallelSpec(tp=tp, pp=pp))
    cases = [(tokens(40), 40), (tokens(7), None), (tokens(20), 3), (tokens(33), 40), (tokens(9), 2**64 - 1)]
    unified, out = tmp_path / "unified", tmp_path / "out.npy"
    run_world(tp * pp, "adapters.py", unified, adapters, json.dumps(cases), out, KV_HEADS)
    found, start = np.load(out), 0
    for prompt, id in cases:
        logits = expected(family, id).logits(prompt)
        difference = np.abs(found[start : start + len(prompt)] - logits).max()
        assert difference < 1e-5 * np.abs(logits).max(), (id, len(prompt))
        start += len(prompt)


def test_answers_with_and_without_adapters_share_a_batch(executor: Executor, generate: Any, expected: Any) -> None:
    # Three adapters and two places: one of them waits until a place is free.
    cases = [(tokens(n), id) for n, id in ((5, 3), (60, None), (30, 40), (30, 3), (9, 2**64 - 1), (9, None))]
    done = generate(executor, [Request(prompt, 6, lora_id=id) for prompt, id in cases])
    assert done.tokens == [expected("llama", id).greedy(prompt, 6) for prompt, id in cases]
    assert executor.stats().queued == executor.stats().kv_blocks_used == 0


def test_drafts_of_a_model_without_them_change_nothing(
    make_engine: Callable[..., Path],
    make_checkpoint: Any,
    adapters: Path,
    executing: Any,
    generate: Any,
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pace, "draft_cost", lambda self, answers: 0.2)
    draft = {"speculative": "draft_model", "draft": str(make_checkpoint("--family", "llama"))}
    with executing(make_engine(engine=LORA | draft), lora_dir=adapters) as executor:
        cases = [(tokens(5), 3), (tokens(60), None), (tokens(30), 40)]
        done = generate(executor, [Request(prompt, 12, lora_id=id) for prompt, id in cases])
        assert done.tokens == [expected("llama", id).greedy(prompt, 12) for prompt, id in cases]
        assert executor.stats().draft_tokens > 0


def test_the_cache_of_one_adapter_is_not_taken_for_another(executor: Executor, generate: Any, expected: Any) -> None:
    prompt = tokens(70)
    for id in (3, 40, None, 3):
        assert generate(executor, [Request(prompt, 4, lora_id=id)]).tokens == [expected("llama", id).greedy(prompt, 4)]


def test_a_place_is_taken_from_the_adapter_that_rests_longest(executor: Executor, generate: Any) -> None:
    orders: list[int] = []
    leader = executor._leader
    assert leader is not None
    started = leader._loader.start

    def start(order: Any) -> None:
        orders.append(int(Path(order.folder).name))
        started(order)

    def run(*ids: int) -> list[int]:
        orders.clear()
        for id in ids:
            assert generate(executor, [Request(tokens(4), 2, lora_id=id)]).last[0].finish_reason == "length"
        return list(orders)

    leader._loader.start = start  # type: ignore[method-assign]
    run(3, 40)
    assert run(3, 40, 3) == []
    assert run(2**64 - 1) == [2**64 - 1]
    assert run(3, 40) == [40]


def test_a_waiting_request_can_be_cancelled(executor: Executor, generate: Any) -> None:
    outputs: list[list[Output]] = [[] for _ in range(3)]
    ids = [
        executor.submit(Request(tokens(5), 200, lora_id=id), outputs[row].append)
        for row, id in enumerate((3, 40, 2**64 - 1))
    ]
    deadline = time.monotonic() + 10
    while not (outputs[0] and outputs[1]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    executor.cancel(ids[2])
    while not outputs[2]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [output.finish_reason for output in outputs[2]] == ["cancelled"]
    for id in ids[:2]:
        executor.cancel(id)
    assert generate(executor, [Request(tokens(5), 2, lora_id=2**64 - 1)]).last[0].finish_reason == "length"


def test_adapters_work_beside_whole_number_weights(
    make_engine: Callable[..., Path], adapters: Path, executing: Any, generate: Any, expected: Any
) -> None:
    prompts = [tokens(20), tokens(21), tokens(22), tokens(23)]
    with executing(make_engine(quantization="w8a16", engine=LORA), lora_dir=adapters) as executor:
        done = generate(executor, [Request(prompt, 1, lora_id=40) for prompt in prompts])
    right = [expected("llama", 40).greedy(prompt, 1) for prompt in prompts]
    assert sum(a == b for a, b in zip(done.tokens, right, strict=True)) >= 3


BROKEN = {
    "bias": (lambda f: edit(f, bias="all"), "its bias is 'all'"),
    "dora": (lambda f: edit(f, use_dora=True), "its use_dora is True"),
    "pissa": (lambda f: edit(f, init_lora_weights="pissa"), "its init_lora_weights is 'pissa'"),
    "other_kind": (lambda f: edit(f, peft_type="IA3"), "its peft_type is 'IA3'"),
    "more_modules": (lambda f: edit(f, modules_to_save=["lm_head"]), "its modules_to_save"),
    "no_alpha": (lambda f: edit(f, lora_alpha=None), "lora_alpha is not a number"),
    "bad_pattern": (lambda f: edit(f, alpha_pattern={"(": 1}), "adapter_config.json cannot be used"),
    "no_config": (lambda f: (f / "adapter_config.json").unlink(), "No such file"),
    "no_weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "No such file"),
    "cut_off": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"short"), "cannot be read"),
    "rank": (lambda f: rewrite(f, 9), "has rank 9; the engine was built for ranks 1 to 8"),
    "another_model": (lambda f: rewrite(f, 2, widen=1), "this is another model's adapter"),
    "unknown_module": (lambda f: rename(f, "q_proj", "query"), "it changes model.layers.0.self_attn.query"),
    "one_side": (lambda f: rename(f, "0.self_attn.q_proj.lora_A", "9.lora_A"), "has not both lora_A and lora_B"),
    "more_layers": (lambda f: rename(f, "layers.4", "layers.77"), "the model has 5 layers"),
    "embedding": (lambda f: rename(f, "0.self_attn.q_proj.lora_A.weight", "lora_embedding_A"), "lora_embedding_A"),
}


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rewrite(folder: Path, rank: int, widen: int = 0) -> None:
    path = folder / "adapter_model.safetensors"
    arrays = load_file(path)
    for name, array in arrays.items():
        shape = (rank, array.shape[1] + widen) if "lora_A" in name else (array.shape[0], rank)
        arrays[name] = np.zeros(shape, np.float32)
    save_file(arrays, path)


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): array for name, array in load_file(path).items()}, path)


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused_at_once(
    executor: Executor, adapters: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_it, hint = BROKEN[name]
    break_it(Path(shutil.copytree(adapters / "3", tmp_path / "8")))
    monkeypatch.setattr(executor._adapters, "_folder", tmp_path)
    with pytest.raises(RequestError, match="adapter 8 cannot be used") as caught:
        executor.submit(Request([7], 4, lora_id=8), lambda output: None)
    assert hint in caught.value.why


def test_an_unknown_adapter_is_refused_at_once(
    executor: Executor, make_engine: Callable[..., Path], executing: Any
) -> None:
    with pytest.raises(RequestError, match="adapter 5 cannot be used") as caught:
        executor.submit(Request([7], 4, lora_id=5), lambda output: None)
    assert "is no folder" in caught.value.why
    with executing(make_engine()) as plain, pytest.raises(RequestError, match="adapter 3 cannot be used") as caught:
        plain.submit(Request([7], 4, lora_id=3), lambda output: None)
    assert "built without adapters" in caught.value.why
    with executing(make_engine(engine=LORA)) as bare, pytest.raises(RequestError) as caught:
        bare.submit(Request([7], 4, lora_id=3), lambda output: None)
    assert "launched without serve.lora_dir" in caught.value.why


def test_what_cannot_be_loaded_ends_its_request_alone(
    executor: Executor, generate: Any, adapters: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here because its numbers are not finite; then as on a rank that lacks the folder."""
    folder = Path(shutil.copytree(adapters / "3", tmp_path / "8"))
    arrays = load_file(folder / "adapter_model.safetensors")
    arrays["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"][0, 0] = np.inf
    save_file(arrays, folder / "adapter_model.safetensors")
    monkeypatch.setattr(executor._adapters, "_folder", tmp_path)
    prompt = tokens(11)
    requests = [Request(prompt, 4, lora_id=8), Request(prompt, 4), Request(prompt, 4, lora_id=8)]
    for reason in ("layers.2.mlp.up_proj has numbers that are not finite", "No such file"):
        done = generate(executor, requests)
        assert [output.finish_reason for output in done.last] == ["error", "length", "error"]
        assert reason in done.last[0].error
        assert done.tokens[1] == expected("llama", None).greedy(prompt, 4)
        shutil.rmtree(folder, ignore_errors=True)
    assert executor.stats().kv_blocks_used == 0


SENT_MODULES = {"q": 1, "k": 2, "v": 3, "o": 4, "gate": 5, "down": 6, "up": 7}


def as_sent(folder: Path) -> tuple[Any, Any]:
    """Return an adapter as lora_weights and lora_config."""
    arrays = load_file(folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    rows, config = [], []
    for name, a in arrays.items():
        if "lora_A" in name:
            b = arrays[name.replace("lora_A", "lora_B")] * settings["lora_alpha"] / settings["r"]
            parts = name.split(".")
            config.append((SENT_MODULES[parts[6].removesuffix("_proj")], int(parts[4]), len(a)))
            rows.append(np.concatenate([a.ravel(), b.ravel()]))
    width = max(map(len, rows)) + 3
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows]), np.array(config, np.int32)


def test_an_adapter_can_come_with_a_request(
    executor: Executor, generate: Any, adapters: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardyard.runtime.adapters.folders.MOST_SENT", 2)
    prompt = tokens(20)
    weights, config = as_sent(adapters / "40")
    for id in (100, 101, 100, 102):
        executor.add_adapter(id, weights, config)
        assert generate(executor, [Request(prompt, 5, lora_id=id)]).tokens == [expected("llama", 40).greedy(prompt, 5)]
    with pytest.raises(RequestError, match="adapter 100 cannot be used"):
        executor.submit(Request(prompt, 5, lora_id=100), lambda output: None)
    executor.add_adapter(3, weights, config)  # There is one: it stays.
    assert generate(executor, [Request(prompt, 5, lora_id=3)]).tokens == [expected("llama", 3).greedy(prompt, 5)]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda weights, config: (weights[0], config), "do not fit each other"),
        (lambda weights, config: (weights, config[:, :2]), "do not fit each other"),
        (lambda weights, config: (weights, np.add(config, [[9, 0, 0]])), "names module"),
        (lambda weights, config: (weights, np.add(config, [[0, 0, 1]])), "lora_config says rank 5"),
        (lambda weights, config: (weights, np.add(config, [[0, 3, 0]])), "the model has 5 layers"),
        (lambda weights, config: (np.tile(weights, 3), np.add(config, [[0, 0, 5]])), "ranks 1 to 8"),
    ],
)
def test_a_sent_adapter_that_does_not_fit_is_refused(
    executor: Executor, adapters: Path, change: Callable[..., tuple[Any, Any]], hint: str
) -> None:
    with pytest.raises(RequestError, match="adapter 9 cannot be used") as caught:
        executor.add_adapter(9, *change(*as_sent(adapters / "3")))
    assert hint in caught.value.why


@pytest.mark.e2e
@pytest.mark.parametrize("grid", [(2, 1), (2, 2)], ids=str)
def test_every_rank_loads_its_share(
    run_world: Any, make_engine: Any, adapters: Path, expected: Any, tmp_path: Path, grid: tuple[int, int]
) -> None:
    cases = [(tokens(n), id) for n, id in ((5, 3), (60, None), (30, 40), (9, 2**64 - 1), (12, 40), (8, 77))]
    write_adapter(tmp_path / "lora" / "77", 4)
    for id in (3, 40, 2**64 - 1):
        shutil.copytree(adapters / str(id), tmp_path / "lora" / str(id))
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([{"prompt": p, "max_new_tokens": 5, "lora_id": id} for p, id in cases]))
    engine = make_engine("llama", *grid, engine=LORA)
    # The other ranks do not find adapter 77, as on a host without the folder.
    env = {"SHARDYARD_TEST_HIDDEN": str(tmp_path / "lora" / "77")}
    done = run_world(grid[0] * grid[1], "generate.py", engine, requests, 0, tmp_path / "lora", env=env)["answers"]
    for (prompt, id), answer in zip(cases[:-1], done, strict=False):
        assert answer["tokens"] == expected("llama", id).greedy(prompt, 5), id
    assert done[-1]["reason"] == "error"


def test_a_family_without_the_known_modules_is_refused_at_build(make_pipeline: Any, tmp_path: Path) -> None:
    quiet, pipeline = Console(quiet=True), make_pipeline("gpt2", engine=LORA)
    convert(pipeline, tmp_path / "checkpoint", quiet)
    with pytest.raises(PipelineError, match="not possible with GPTForCausalLM"):
        build(pipeline, tmp_path / "checkpoint", tmp_path / "engine", quiet)
