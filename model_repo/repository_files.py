"""The files of a model repository besides what its configurations say: folders, code, tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from shardyard.model_repo.tokenizer_files import TokenizerFiles

__all__ = ["TOKENIZER", "VERSION", "write_repository"]

VERSION = "1"
#: Where the tokenizer lies in the repository; the models find it by their parameter ``tokenizer_dir``.
TOKENIZER = f"preprocessing/{VERSION}/tokenizer"


def write_repository(
    folder: Path,
    texts: Mapping[str, str],
    modules: Mapping[str, str],
    tokenizer: TokenizerFiles,
    *,
    tokenizer_at: str = TOKENIZER,
) -> None:
    """Write each model's config.pbtxt and code, and copy the tokenizer's files to ``tokenizer_at``.

    ``modules``: model → the module of its code; a model that is not there has none.
    """
    for name, text in texts.items():
        version = folder / name / VERSION
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
        _write_code(version, modules.get(name))
    copies = folder / tokenizer_at
    copies.mkdir()
    for name in tokenizer.names:
        shutil.copyfile(tokenizer.folder / name, copies / name)


def _write_code(version: Path, module: str | None) -> None:
    """Write the thin model.py, or, for a model without code, a file that keeps the folder which Triton wants."""
    if module is None:
        (version / ".keep").touch()
        return
    (version / "model.py").write_text(
        f'"""Triton loads this file; the code is shardyard.model_repo.models.{module}."""\n\n'
        f"from shardyard.model_repo.models.{module} import TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n',
        encoding="utf-8",
    )
