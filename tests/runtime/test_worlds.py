"""Real MPI worlds: every grid answers as one rank does, and no world outlives a rank."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.runtime.engine_file import open_engine
from shardyard.spec import ParallelSpec

pytestmark = pytest.mark.e2e


def tokens(count: int) -> list[int]:
    return np.random.default_rng(count).integers(6, 515, count).tolist()


GREEDY = [{"prompt": tokens(n), "max_new_tokens": 10} for n in (5, 40, 100, 33, 1, 64)]
SAMPLED = [
    {"prompt": tokens(20), "max_new_tokens": 12, "sampling": sampling}
    for sampling in (
        {"top_p": 1.0, "seed": 1},
        {"top_k": 40, "temperature": 1.5, "seed": 2},
        {"top_p": 0.8, "seed": 3, "repetition_penalty": 1.3},
        {"frequency_penalty": 0.4, "presence_penalty": 0.2},
    )
]
REQUESTS = [*GREEDY, *SAMPLED, {"prompt": tokens(9), "max_new_tokens": 5, "want_log_probs": True}]
#: tp, pp, cp
GRIDS = [(2, 1, 1), (1, 2, 1), (2, 2, 1), (4, 1, 1), (1, 1, 2), (2, 1, 2), (1, 2, 3)]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps(REQUESTS))
    return path


@pytest.fixture(scope="module")
def one_rank(make_engine: Callable[..., Path], executing: Any, generate: Any) -> Callable[[str], Any]:
    """What one rank answers; its greedy tokens are checked against the reference in test_executor."""
    from shardyard.runtime.request import Request, SamplingParams

    def answers(family: str) -> Any:
        todo = [Request(**{**raw, "sampling": SamplingParams(**raw.get("sampling", {}))}) for raw in REQUESTS]
        with executing(make_engine(family)) as executor:
            return generate(executor, todo)

    return answers


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "tp{}pp{}cp{}".format(*grid))
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_grid_gives_the_same_tokens(
    run_world: Any, make_engine: Any, one_rank: Any, requests: Path, grid: tuple[int, int, int], family: str
) -> None:
    expected = one_rank(family)
    idle = 1.0 if (family, grid) == ("llama", (2, 2, 1)) else 0.0
    engine = make_engine(family, *grid[:2], parallel={"cp": grid[2]})
    done = run_world(math.prod(grid), "generate.py", engine, requests, idle)
    assert [answer["tokens"] for answer in done["answers"]] == expected.tokens
    assert [answer["reason"] for answer in done["answers"]] == ["length"] * len(REQUESTS)
    assert done["answers"][-1]["log_probs"] == pytest.approx(expected.log_probs[-1], abs=1e-4)
    # Ranks with nothing to do leave the cores to others.
    assert done["idle_cpu"] < 0.1
    if idle:
        check_times(done["ranks"], done["steps"], engine)


def check_times(ranks: list[dict[str, float]], steps: int, engine: Path) -> None:
    """Check a tp=2, pp=2 world's times: all ranks ran all steps, and each sent what the closed formulas say."""
    config = json.loads((engine / "config.json").read_text())["pretrained_config"]
    # Two sums per layer. Two more steps, of one token and of two, were run to warm up.
    sums = [2 * len(open_engine(engine / f"rank{2 * stage}.engine")[0].layers) for stage in range(2)]
    tokens_run = 3 + sum(len(request["prompt"]) + request["max_new_tokens"] - 1 for request in REQUESTS)
    for number, rank in enumerate(ranks):
        assert (rank["steps"], rank["sums"]) == (steps + 2, (steps + 2) * sums[number // 2])
        assert rank["sum_bytes"] == tokens_run * sums[number // 2] * config["hidden_size"] * 4
        assert all(rank[name] > 0 for name in ("compute_s", "waiting_s", "moving_s", "sending_s"))
        assert (rank["receiving_s"] > 0) == (number != 1)


def test_without_a_compiler_the_tokens_are_the_same(
    run_world: Any, make_engine: Any, one_rank: Any, requests: Path
) -> None:
    engine = make_engine("llama", 2, 1)
    done = run_world(2, "generate.py", engine, requests, 0, env={"SHARDYARD_NO_COMPILER": "1"})
    assert [answer["tokens"] for answer in done["answers"]] == one_rank("llama").tokens


@pytest.mark.parametrize(
    ("tp", "pp", "more", "env", "kind"),
    [
        (2, 2, {}, {}, "SharedMemoryAllReduce"),
        (4, 1, {"use_parallel_embedding": True}, {}, "SharedMemoryAllReduce"),
        (2, 1, {"use_parallel_embedding": True, "embedding_sharding_dim": 1}, {}, "SharedMemoryAllReduce"),
        (2, 1, {}, {"SHARDYARD_NO_COMPILER": "1"}, "MpiAllReduce"),
        (1, 2, {"cp": 2}, {}, "NoneType"),
        (2, 1, {"cp": 2}, {"SHARDYARD_NO_COMPILER": "1"}, "MpiAllReduce"),
    ],
    ids=["tp2pp2", "embedding_rows", "embedding_columns", "python_all_reduce", "cp2pp2", "tp2cp2"],
)
def test_logits_of_all_positions(
    run_world: Any,
    make_checkpoint: Any,
    reference: Any,
    tmp_path: Path,
    tp: int,
    pp: int,
    more: Any,
    env: Any,
    kind: str,
) -> None:
    source, prompt = make_checkpoint("--family", "qwen2"), tokens(90)
    (tmp_path / "unified").mkdir()
    convert_checkpoint(source, tmp_path / "unified", ParallelSpec(tp=tp, pp=pp, **more))
    ranks, out = tp * pp * more.get("cp", 1), tmp_path / "out.npy"
    said = run_world(ranks, "logits.py", tmp_path / "unified", json.dumps(prompt), out, env=env)
    assert said == {"all_reduce": kind}
    assert np.abs(np.load(out) - reference(source).logits(prompt)).max() < 1e-5


def test_int8_over_two_ranks_is_close(run_world: Any, make_engine: Any, requests: Path, one_rank: Any) -> None:
    done = run_world(2, "generate.py", make_engine("llama", 2, 1, quantization="w8a16"), requests, 0)
    pairs = zip(done["answers"], one_rank("llama").tokens, strict=True)
    first = [answer["tokens"][0] == exact[0] for answer, exact in list(pairs)[: len(GREEDY)]]
    assert sum(first) >= len(GREEDY) - 1


@pytest.mark.parametrize(("grid", "rank"), [((2, 1), 1), ((1, 2), 1), ((2, 2), 3)])
def test_a_killed_worker_ends_the_world(
    world: Any, make_engine: Any, tmp_path: Path, grid: tuple[int, int], rank: int
) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"prompt": tokens(5), "max_new_tokens": 250}] * 64))
    process = world(grid[0] * grid[1], "generate.py", make_engine("llama", *grid), path, 0)
    ranks = wait_for_ranks(process.pid, grid[0] * grid[1], tmp_path)
    ranks[rank].kill()
    started = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert process.returncode != 0
    assert psutil.wait_procs(ranks, timeout=2)[1] == []


@pytest.mark.parametrize("busy", [True, False])
def test_a_leader_that_mpirun_does_not_watch_is_missed(
    world: Any, make_engine: Any, tmp_path: Path, busy: bool
) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"prompt": tokens(5), "max_new_tokens": 250}] * (64 if busy else 0)))
    process = world(4, "generate.py", make_engine("llama", 2, 2), path, 0 if busy else 30, nested=True)
    ranks = wait_for_ranks(process.pid, 4, tmp_path)
    ranks[0].kill()
    started = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert process.returncode != 0
    assert "is gone" in err


def wait_for_ranks(pid: int, count: int, folder: Path) -> list[psutil.Process]:
    """Wait until the engine is ready and has been at work for a moment; return its ranks in order."""
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        ranks = find_ranks(pid)
        if len(ranks) == count and (folder / "ready").exists():
            time.sleep(0.3)
            return [ranks[rank] for rank in range(count)]
        time.sleep(0.05)
    raise TimeoutError("the ranks did not start")


def find_ranks(pid: int) -> dict[int, psutil.Process]:
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "mpi4py" in process.cmdline():
                found[int(process.environ()["OMPI_COMM_WORLD_RANK"])] = process
        except (psutil.Error, KeyError):
            continue  # It has just ended, or it is mpirun.
    return found


@pytest.mark.parametrize(
    ("break_it", "ranks", "hint"),
    [
        (lambda folder: (folder / "rank1.engine").write_bytes(b"short"), 2, "rank1.engine is not a whole engine file"),
        (lambda folder: shutil.copy(folder / "rank0.engine", folder / "rank1.engine"), 2, "another rank's"),
        (lambda folder: None, 3, "has 3 rank(s) and the engine was built for 2"),
        (lambda folder: None, 1, "has 1 rank(s) and the engine was built for 2"),
    ],
    ids=["broken_file", "wrong_file", "too_many_ranks", "too_few_ranks"],
)
def test_a_world_that_cannot_start_says_why(
    world: Any, make_engine: Any, tmp_path: Path, requests: Path, break_it: Any, ranks: int, hint: str
) -> None:
    folder = shutil.copytree(make_engine("llama", 2, 1), tmp_path / "engine")
    break_it(folder)
    process = world(ranks, "generate.py", folder, requests, 0)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert hint in err


@pytest.mark.parametrize(
    ("ranks", "hosts", "env", "kind"),
    [
        (2, 1, {}, "SharedMemoryAllReduce"),
        (3, 1, {}, "SharedMemoryAllReduce"),
        (3, 1, {"SHARDYARD_NO_COMPILER": "1"}, "MpiAllReduce"),
        (4, 2, {}, "HostsAllReduce"),
        (3, 2, {}, "HostsAllReduce"),
        (2, 2, {}, "MpiAllReduce"),
    ],
)
def test_sums_are_equal_to_the_bit(run_world: Any, ranks: int, hosts: int, env: dict[str, str], kind: str) -> None:
    assert run_world(ranks, "sums.py", hosts, env=env) == {"equal": True, "kind": kind}
