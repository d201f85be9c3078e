"""The rank files are bit for bit those of TensorRT-LLM's own converter.

``cases/`` holds what that converter wrote for a seeded checkpoint and a grid: every tensor's type, shape and SHA-256,
and config.json. What may differ stands in each case under ``tolerate``: the rotary tables, which the loader makes
itself, and keys that only matter at launch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.source.safetensors_file import SafetensorsFile
from shardyard.spec import ParallelSpec

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def test_every_case_is_here() -> None:
    assert len(CASES) == 18


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_rank_files_are_those_of_the_reference(
    case: Path, reference_source: Callable[[str], Path], tmp_path: Path
) -> None:
    golden = json.loads(case.read_text())
    source = reference_source(golden["source"]["ckpt"])
    for name, digest in golden["source"]["files"].items():
        if name != "generation_config.json":
            assert hashlib.sha256((source / name).read_bytes()).hexdigest() == digest
    params = golden["params"]
    convert_checkpoint(source, tmp_path, ParallelSpec(**{key: params[key] for key in _DEGREES}))
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert written == sorted(golden["ranks"])
    for name in written:
        wanted = {
            tensor: entry
            for tensor, entry in golden["ranks"][name].items()
            if not _matches(tensor, golden["tolerate"]["missing"])
        }
        assert _described(tmp_path / name) == wanted
    assert _config_differences(json.loads((tmp_path / "config.json").read_text()), golden) == []


_DEGREES = ("tp", "pp", "cp", "moe_ep", "use_parallel_embedding", "embedding_sharding_dim")


def _described(path: Path) -> dict[str, Any]:
    file = SafetensorsFile(path)
    return {
        name: {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "sha256": hashlib.sha256(file.array(name).tobytes()).hexdigest(),
        }
        for name, entry in file.entries.items()
    }


def _config_differences(written: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    got, wanted, tolerate = _flat(written), _flat(golden["config"]), golden["tolerate"]
    found = []
    for key in sorted(got.keys() | wanted.keys()):
        optional = key in tolerate["config_optional"] or key.partition(".")[0] in tolerate["config_optional"]
        if _matches(key, tolerate["config_ignore"]) or (key not in got and optional):
            continue
        if key not in got or key not in wanted or got[key] != wanted[key]:
            found.append(f"{key}: {got.get(key, 'absent')!r}, reference {wanted.get(key, 'absent')!r}")
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and key in ("mapping", "quantization", "moe")
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
