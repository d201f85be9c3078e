"""plan tells from headers alone what convert will write, quickly, and what cannot work."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.plan import plan
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.errors import CheckpointError
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import ParallelSpec

Write = Callable[..., Path]
BIG = {"num_hidden_layers": 80, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 2}


def plan_of(checkpoint: Path, **sections: Any) -> Any:
    return plan(parse_pipeline({"name": "t", "model": {"checkpoint": str(checkpoint)}, **sections}))


@pytest.mark.parametrize("degrees", [{}, {"tp": 2, "pp": 2}, {"tp": 4}, {"tp": 2, "use_parallel_embedding": True}])
def test_the_plan_is_what_convert_writes(write_checkpoint: Write, tmp_path: Path, degrees: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "source", {"tie_word_embeddings": True})
    convert_checkpoint(source, tmp_path, ParallelSpec(**degrees), "bfloat16")
    made = plan_of(source, parallel=degrees, engine={"dtype": "bfloat16"})
    for rank in made.ranks:
        entries = SafetensorsFile(tmp_path / f"rank{rank.rank}.safetensors").entries
        assert rank.tensors == len(entries)
        assert rank.weight_bytes == sum(entry.nbytes for entry in entries.values())
        assert rank.largest_bytes == max(entry.nbytes for entry in entries.values()) == entries[rank.largest].nbytes
    assert made.parameters == sum(tensor.size for tensor in load_file(source / "model.safetensors").values())
    assert len(made.rows) == len(made.ranks)
    assert all(len(row) == len(made.columns) for row in made.rows)
    assert [layer for rank in made.ranks if rank.tp_rank == 0 for layer in rank.layers] == [0, 1, 2]


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"engine": {"dtype": "float32"}}, 2 * 3 * 2 * 4 * 4),
        ({"engine": {"dtype": "bfloat16"}}, 2 * 3 * 2 * 4 * 1),
        ({"engine": {"dtype": "bfloat16", "kv_cache": "bfloat16"}}, 2 * 3 * 2 * 4 * 2),
        ({"quantization": "w8a16", "engine": {"dtype": "float32"}}, 2 * 3 * 2 * 4 * 1),
        ({"parallel": {"tp": 2}}, 2 * 3 * 1 * 4 * 4),
        ({"parallel": {"tp": 4}}, 2 * 3 * 1 * 4 * 4),
        ({"parallel": {"pp": 3}}, 2 * 1 * 2 * 4 * 4),
    ],
    ids=str,
)
def test_kv_cache_bytes_of_a_token(
    write_checkpoint: Write, tmp_path: Path, sections: dict[str, Any], wanted: int
) -> None:
    assert {rank.kv_bytes for rank in plan_of(write_checkpoint(tmp_path), **sections).ranks} == {wanted}


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"engine": {"max_seq_len": 65}}, "max_seq_len=65 is beyond the max_position_embeddings=64"),
        ({"parallel": {"tp": 4}}, "each head is on 2 ranks"),
        ({"engine": {"kv_cache_tokens": 10**12}}, "does not fit"),
        ({"engine": {"kv_cache_tokens": 100}}, "KV cache of 100 tokens in float32"),
    ],
    ids=str,
)
def test_remarks(write_checkpoint: Write, tmp_path: Path, sections: dict[str, Any], wanted: str) -> None:
    assert wanted in "\n".join(plan_of(write_checkpoint(tmp_path), **sections).remarks)


def test_what_cannot_work_is_an_error(write_checkpoint: Write, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"parallel\.tp=3"):
        plan_of(write_checkpoint(tmp_path), parallel={"tp": 3})


def test_a_large_model_is_planned_within_a_second(write_checkpoint: Write, tmp_path: Path) -> None:
    """As many layers and ranks as 70B models have; the weights are a hole in the file."""
    source = write_checkpoint(tmp_path, BIG)
    path = source / "model.safetensors"
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[:header])
    with path.open("r+b") as file:
        file.truncate(len(data))
    started = time.process_time()
    assert len(plan_of(source, parallel={"tp": 8, "pp": 8}).ranks) == 64
    assert time.process_time() - started < 1


def test_the_command_prints_the_plan(shardyard: Callable[..., Any], write_checkpoint: Write, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source")
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: source}\nparallel: {pp: 2}\n")
    done: subprocess.CompletedProcess[str] = shardyard("plan", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1\t0\t1\t2–2\t" in done.stdout
    assert not (tmp_path / "work").exists()
