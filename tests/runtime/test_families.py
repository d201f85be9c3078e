"""Every family's rank files on the engine, against the logits that transformers computed for the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.runtime.names import scale_name
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

#: The bar of the certificate: largest error over largest logit.
MAX_RELATIVE = 1e-4
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "logits"
FAMILIES = sorted(path.stem for path in GOLDEN.glob("*.json") if path.stem != "phi3-longrope")
#: Grids that two ranks make, and families on each: together all ways in which ranks share a layer.
GRIDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "tp2": (
        {"tp": 2},
        (
            *("llama-bias", "qwen3", "phi3", "mixtral", "qwen2_moe", "gemma2", "gpt2", "gpt_neox", "falcon_new"),
            *("falcon", "falcon-alibi", "falcon-alibi_six_heads"),
        ),
    ),
    "moe_ep2": ({"tp": 2, "moe_ep": 2}, ("mixtral", "qwen2_moe", "qwen3_moe")),
    "pp2": ({"pp": 2}, ("mistral", "qwen3_moe", "gemma2", "gpt2", "gpt_neox", "falcon-alibi")),
    "cp2": ({"cp": 2}, ("falcon-alibi", "falcon-alibi_six_heads")),
    "embedding_rows": ({"tp": 2, "use_parallel_embedding": True}, ("gemma", "opt", "gpt2")),
    "embedding_columns": (
        {"tp": 2, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
        ("gemma", "opt", "gpt2"),
    ),
}


@dataclass(frozen=True)
class Golden:
    """A checkpoint, prompts, and the logits of each prompt's last positions."""

    folder: Path
    prompts: list[list[int]]
    logits: list[Any]

    def up_to(self, tokens: int) -> Golden:
        """Return the prompts that have no more tokens; dynamic scaling is another one for longer prompts."""
        return self._those([len(prompt) <= tokens for prompt in self.prompts])

    def beyond(self, tokens: int) -> Golden:
        """Return the prompts that have more tokens."""
        return self._those([len(prompt) > tokens for prompt in self.prompts])

    def _those(self, chosen: list[bool]) -> Golden:
        return Golden(self.folder, list(compress(self.prompts, chosen)), list(compress(self.logits, chosen)))

    def error(self, got: list[Any]) -> float:
        """Return the largest error of any prompt, relative to its largest logit."""
        pairs = zip(got, self.logits, strict=True)
        return max(float(np.abs(g[-len(w) :] - w).max() / np.abs(w).max()) for g, w in pairs)


@pytest.fixture(scope="module")
def golden(make_checkpoint: Callable[..., Path]) -> Callable[[str], Golden]:
    def load(name: str) -> Golden:
        described = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        arrays = np.load(GOLDEN / f"{name}.npz")
        cases = described["cases"]
        names = [*(f"logits_{index}" for index in range(len(cases))), "logits_long"]
        return Golden(
            make_checkpoint(*described["options"]),
            [case["ids"] + case["tokens"] for case in cases] + [described["long"]],
            [arrays[key] for key in names],
        )

    return load


@pytest.mark.parametrize("name", FAMILIES)
def test_one_rank(name: str, golden: Callable[[str], Golden], tmp_path: Path) -> None:
    wanted = golden(name)
    convert_checkpoint(wanted.folder, tmp_path, ParallelSpec())
    spec, arrays = rank_arrays(tmp_path, 0, weights="float32")
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
    fitting = wanted.up_to(spec.max_positions)
    assert fitting.error([model.logits(prompt) for prompt in fitting.prompts]) < MAX_RELATIVE


@pytest.mark.parametrize("longest", [256, 320])
def test_longrope_turns_as_the_longest_sequence_asks(
    longest: int, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    wanted = golden("phi3-longrope")
    convert_checkpoint(wanted.folder, tmp_path, ParallelSpec())
    spec, arrays = rank_arrays(tmp_path, 0, weights="float32")
    model = RankModel(replace(spec, max_positions=longest), arrays, World(1, 1), RankSettings.exact())
    short, long = wanted.up_to(256), wanted.beyond(256)
    assert len(short.prompts) == 2 and len(long.prompts) == 1
    right, other = (short, long) if longest == 256 else (long, short)
    assert right.error([model.logits(prompt) for prompt in right.prompts]) < MAX_RELATIVE
    if other.prompts == short.prompts:
        assert other.error([model.logits(prompt) for prompt in other.prompts]) > MAX_RELATIVE


@pytest.mark.e2e
@pytest.mark.parametrize("grid", GRIDS)
def test_two_ranks(grid: str, golden: Callable[[str], Golden], run_world: Any, tmp_path: Path) -> None:
    degrees, names = GRIDS[grid]
    wanted = {name: golden(name) for name in names}
    jobs = []
    for name, each in wanted.items():
        (tmp_path / name).mkdir()
        convert_checkpoint(each.folder, tmp_path / name, ParallelSpec(**degrees))
        jobs.append({"checkpoint": str(tmp_path / name), "prompts": each.prompts})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_world(2, "families.py", tmp_path / "jobs.json")
    errors = {name: each.error(list(np.load(tmp_path / name / "logits.npz").values())) for name, each in wanted.items()}
    assert max(errors.values()) < MAX_RELATIVE, errors


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_int8_experts_are_the_rounded_weights(name: str, golden: Callable[[str], Golden], tmp_path: Path) -> None:
    wanted = golden(name)
    convert_checkpoint(wanted.folder, tmp_path, ParallelSpec())
    spec, narrow = rank_arrays(tmp_path, 0, weights="int8")
    wide_spec, wide = rank_arrays(tmp_path, 0, weights="float32")
    for key, array in narrow.items():
        if array.dtype == np.int8:
            wide[key] = array * narrow[scale_name(key)]
    assert {array.dtype for key, array in narrow.items() if key.endswith("mlp.fc.weight")} == {np.dtype(np.int8)}
    assert {array.dtype for key, array in narrow.items() if "router" in key} == {np.dtype(np.float32)}
    got, rounded = (
        RankModel(each, arrays, World(1, 1), RankSettings.exact()).logits(wanted.prompts[0])
        for each, arrays in ((spec, narrow), (wide_spec, wide))
    )
    assert got is not None
    assert rounded is not None
    assert np.abs(got - rounded).max() / np.abs(rounded).max() < 3e-5
    assert np.abs(got[-3:] - wanted.logits[0]).max() / np.abs(wanted.logits[0]).max() > 1e-3
