"""Every family on grids that suit it: converted rank files hold the source's bytes and compute what it computes.

The checkpoints are those that transformers computed golden logits for, by their names. One world of MPI per tp takes
all of them in turn: starting it takes longer than comparing a family.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.families import FAMILIES
from shardyard.builder.proof.algebra import compare_bytes
from shardyard.builder.proof.layer_figures import LayerFigures, PromptParity
from shardyard.builder.proof.parity import make_prompts
from shardyard.builder.source.checkpoint import open_source
from shardyard.console import Console
from shardyard.mpi import child_environment, mpirun_command
from shardyard.spec import ParallelSpec

Make = Callable[..., Path]

PROGRAM = Path(__file__).parent / "worlds" / "certify.py"
LOGITS = Path(__file__).parents[1] / "golden" / "logits"
ROWS: dict[str, Any] = {"use_parallel_embedding": True}
COLUMNS: dict[str, Any] = {"use_parallel_embedding": True, "embedding_sharding_dim": 1}
#: By tp, the other degrees of each golden. No tp divides the vocabularies, few pp the layers; with tp=4 the key/value
#: heads of most are repeated.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "llama-yarn": {"pp": 3},
        "mistral": {"pp": 2},
        "mixtral": {"moe_ep": 2},
        "qwen2": COLUMNS,
        "qwen2-sliding": {"pp": 2},
        "qwen2_moe": {"pp": 2, "moe_ep": 2},
        "qwen3": {"pp": 3},
        "qwen3-sliding": {},
        "qwen3_moe": {"pp": 2},
        "phi3-partial": {"pp": 2},
        "phi3-longrope": {},
        "gemma": {"pp": 2},
        "gemma2": {"pp": 3, **ROWS},
        "gpt2": {"pp": 2, **ROWS},
        "gpt_neox": {"pp": 2},
        "gpt_neox-sequential": {},
        "falcon": {"pp": 2},
        "falcon-sequential": {},
        "falcon-alibi_six_heads": {},
        "opt": ROWS,
    },
    4: {
        "llama": {"pp": 2},
        "mixtral": {"moe_ep": 2, "pp": 2},
        "qwen2": {"pp": 2, **ROWS},
        "qwen2_moe": {"moe_ep": 2},
        "qwen3": COLUMNS,
        "qwen3_moe": {"moe_ep": 4},
        "phi3": {"pp": 3},
        "gemma": COLUMNS,
        "gpt2": {},
        "falcon": {},
        "falcon_new": {"pp": 2},
        "opt": {"pp": 2, **COLUMNS},
    },
}


def test_every_family_is_here() -> None:
    named = {name.partition("-")[0].replace("falcon_new", "falcon") for cases in CASES.values() for name in cases}
    assert {family.name for family in FAMILIES.values()} == named


@pytest.mark.parametrize("tp", CASES)
def test_families_are_verified(make_checkpoint: Make, tmp_path: Path, tp: int) -> None:
    jobs = {
        name: _job(name, ParallelSpec(tp=tp, **degrees), make_checkpoint, tmp_path)
        for name, degrees in CASES[tp].items()
    }
    (tmp_path / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = mpirun_command((tp, [sys.executable, "-m", "mpi4py", str(PROGRAM), str(tmp_path / "jobs.json")]))
    done = subprocess.run(
        command, env=child_environment({"TMPDIR": str(tmp_path)}), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    faults = {name: _faults(Path(job["folder"]), Path(job["source"])) for name, job in jobs.items()}
    assert {name: missed for name, missed in faults.items() if missed} == {}


def _job(name: str, parallel: ParallelSpec, make: Make, tmp_path: Path) -> dict[str, str]:
    """Convert a golden's checkpoint, compare its bytes, and say where the world finds what it needs."""
    source = open_source(make(*json.loads((LOGITS / f"{name}.json").read_text())["options"]))
    folder, checkpoint = tmp_path / name, tmp_path / name / "checkpoint"
    checkpoint.mkdir(parents=True)
    convert_checkpoint(source.folder, checkpoint, parallel)
    assert compare_bytes(source, checkpoint, parallel, "none", Console(quiet=True)).faults == []
    prompts = make_prompts(source.config.vocab_size, source.config.max_position_embeddings)
    (folder / "request.json").write_text(json.dumps({"prompts": prompts, "parallel": parallel.model_dump()}))
    return {"checkpoint": str(checkpoint), "source": str(source.folder), "folder": str(folder)}


def _faults(folder: Path, source: Path) -> list[str]:
    """Return what misses the certificate's bar."""
    found = json.loads((folder / "figures.json").read_text())
    layers = [LayerFigures(**figures) for figures in found["layers"]]
    prompts = [PromptParity(**figures) for figures in found["prompts"]]
    assert len(layers) == 1 + open_source(source).config.num_hidden_layers
    assert max(prompt.prompt_tokens for prompt in prompts) >= 248
    missed = [f"{figures.part}: {figures.max_rel:.1e}" for figures in layers if not figures.passed]
    return missed + [f"{each.prompt_tokens} tokens: {each.max_rel:.1e}" for each in prompts if not each.passed]
