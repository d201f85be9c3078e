"""The engine benchmark, on the tiny shape: what it prints, its limits, and its peers."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.errors import LaunchError
from shardyard.perf.bandwidth import read_bandwidth
from shardyard.perf.bench_engine import main
from shardyard.perf.engine_contenders import peers
from shardyard.perf.engine_limits import measure_limits, network_need
from shardyard.perf.peers.gguf import write_gguf


@pytest.mark.e2e
def test_it_prints_rates_beside_the_limits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--shape", "tiny", "--batches", "1,3", "--rounds", "1", "--weights", "int8"]
    assert main([*options, "--peers", "/bin/false"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"memory bandwidth, two threads reading, around each round: \d+\.\d GB/s \(\d+–\d+\)", out)
    rows = re.findall(r"^int8\tshardyard ([tp]p=\d × \d[ ()a-z]*)\t(\d)\t([\d.]+)\t.*\t\d+%\t", out, re.MULTILINE)
    engines = ["tp=1 × 2", "tp=2 × 1", "pp=2 × 1", "tp=1 × 2 (plugin)"]
    assert [row[:2] for row in rows] == [(engine, batch) for engine in engines for batch in "13"]
    assert all(float(row[2]) > 10 for row in rows)
    assert len(re.findall(r"^int8\tshardyard [tp]p=.*\t[\d.]+\t\d+\t\d+$", out, re.MULTILINE)) == 4


def test_gguf_holds_the_same_numbers(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint("--dtype", "bfloat16", "--set", "tie_word_embeddings=true")
    config = json.loads((checkpoint / "config.json").read_text())
    source = SafetensorsFile(checkpoint / "model.safetensors")
    for kind, number in (("q8_0", 8), ("bf16", 30)):
        write_gguf(checkpoint, tmp_path / kind, kind)
        content = (tmp_path / kind).read_bytes()
        magic, version, tensors, _ = struct.unpack_from("<4sIQQ", content)
        assert (magic, version, tensors) == (b"GGUF", 3, len(source.entries))
        name = b"blk.0.ffn_up.weight"
        at = content.index(name) + len(name)
        dimensions, columns, rows, kept, offset = struct.unpack_from("<IQQIQ", content, at)
        assert (dimensions, columns, rows) == (2, config["hidden_size"], config["intermediate_size"])
        assert (kept, offset % 32) == (number, 0)
        wanted = source.array("model.layers.0.mlp.up_proj.weight").astype(np.float32)
        # The tensors end the file, each padded to 32 bytes.
        start = len(content) - sum(_bytes(entry.shape, kind) for entry in source.entries.values())
        found = _tensor(content[start + offset :], kind, wanted.size).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= (0 if kind == "bf16" else np.abs(wanted).max() / 200)


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    count = math.prod(shape)
    size = count * 4 if len(shape) == 1 else count * 2 if kind == "bf16" else count // 32 * 34
    return size + -size % 32


def _tensor(data: bytes, kind: str, count: int) -> np.ndarray:
    if kind == "bf16":
        return (np.frombuffer(data, np.uint16, count).astype(np.uint32) << 16).view(np.float32)
    groups = np.frombuffer(data, np.dtype([("scale", np.float16), ("numbers", np.int8, 32)]), count // 32)
    return groups["numbers"] * groups["scale"].astype(np.float32)[:, None]


def test_peers_say_rates_in_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    runs = [{"batch": 1, "prefill": 2.0, "decode": 3.0, "compute_share": 1.0}]
    python.write_text(f"#!/bin/sh\necho '{json.dumps({'runs': runs})}'\n")
    python.chmod(0o755)
    monkeypatch.setattr("shardyard.perf.engine_contenders.write_gguf", lambda checkpoint, path, kind: None)
    found = peers(python, tmp_path, tmp_path, tmp_path, [1], 1)
    assert [each.name for each in found] == ["OpenVINO GenAI int8", "llama.cpp q8_0", "llama.cpp bf16"]
    assert [run.decode for each in found for run in each.start().runs] == [3.0] * 3
    assert peers(Path("/bin/false"), tmp_path, tmp_path, tmp_path, [1], 1) == []
    python.write_text("#!/bin/sh\ntest $1 = -c || { echo it is broken >&2; exit 3; }\n")
    with pytest.raises(LaunchError, match=r"genai\.py ended with status 3") as error:
        peers(python, tmp_path, tmp_path, tmp_path, [1], 1)[0].start()
    assert "it is broken" in error.value.why


def test_registers_are_faster_than_memory() -> None:
    limits = measure_limits(1)
    assert limits.peak("float32") == 0
    assert all(rate > 1e9 for rate in limits.peaks.values())


def test_bandwidth_is_a_rate_of_memory() -> None:
    # From one old memory channel to what no machine reads with one thread.
    assert 1e9 < read_bandwidth(1, passes=2) < 500e9


def test_of_experts_only_the_chosen_are_read(
    make_checkpoint: Callable[..., Path], make_engine: Callable[..., Path]
) -> None:
    # 3 of 8 experts in each of 3 layers; hidden 64, inner 128, a byte each and a float32 scale for each row.
    checkpoint = make_checkpoint("--family", "qwen3_moe", "--set", "moe_intermediate_size=128")
    expert = 3 * (3 * 64 * 128 + 4 * (2 * 128 + 64))
    needs = []
    for matmul in ("native", "plugin"):
        options = {"checkpoint": checkpoint, "quantization": "w8a16", "engine": {"matmul": matmul}}
        needs.append(network_need(make_engine(**options), 1))
        whole = network_need(make_engine(parallel={"tp": 2, "moe_ep": 2}, **options), 2)
        assert (whole.experts, whole.chosen) == (8 * expert, 3 / 8)
    for need in needs:
        assert (need.experts, need.chosen) == (8 * expert, 3 / 8)
        assert need.read(1) == need.dense + 3 * expert
        assert need.read(2) == pytest.approx(need.dense + (1 - (5 / 8) ** 2) * 8 * expert)
        assert need.read(1000) == pytest.approx(need.weights)
    assert needs[0].dense == pytest.approx(needs[1].dense, rel=0.01)  # A packed head is padded to whole blocks.


def test_a_dense_network_is_read_whole(make_engine: Callable[..., Path]) -> None:
    need = network_need(make_engine(), 1)
    assert (need.experts, need.chosen, need.read(1), need.read(64)) == (0, 0.0, need.dense, need.weights)
