from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shardyard.cli.parser import build_parser

Run = Callable[..., subprocess.CompletedProcess[str]]
VERBS = ["plan", "convert", "verify", "build", "fill", "up", "serve", "infer", "chat", "perf", "trace", "doctor"]


def test_every_verb_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in [*VERBS, "perf compare", "perf ui"]:
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([verb, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert len(text.splitlines()) > 6, verb


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["plan", "none.yaml"], 2, "pipeline file none.yaml does not exist"),
        (["plan"], 2, "plan needs a pipeline file"),
        (["trace", "."], 3, "belongs to no artifact"),
        (["infer", "p.yaml", "hello"], 5, "no endpoint is running"),
        (["convert", "p.yaml"], 3, "nowhere"),
        (["convert", "p.yaml", "--set", "parallel.tpp=2"], 2, "did you mean 'tp'?"),
        (["build", "p.yaml"], 3, "shardyard convert"),
        (["fill", "p.yaml"], 3, "shardyard build"),
        (["nonsense"], 2, "invalid choice"),
    ],
)
def test_errors_have_a_status_and_no_traceback(
    shardyard: Run, tmp_path: Path, args: list[str], status: int, text: str
) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nmodel: {checkpoint: nowhere}\n")
    done = shardyard(*args, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").rglob("*.safetensors"))


def test_debug_shows_the_traceback(shardyard: Run, tmp_path: Path) -> None:
    assert "Traceback" in shardyard("plan", "none.yaml", "--debug", cwd=tmp_path).stderr


def test_fields_lists_the_pipeline_file(shardyard: Run, tmp_path: Path) -> None:
    done = shardyard("plan", "--fields", cwd=tmp_path)
    assert done.returncode == 0
    assert "parallel.tp\t1\ttensor parallel degree" in done.stdout
