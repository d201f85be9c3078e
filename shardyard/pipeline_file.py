"""Reads a pipeline file, applies ``--set`` overrides, and turns what is wrong into errors that teach."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shardyard.errors import PipelineError
from shardyard.spec import Pipeline

__all__ = ["load_pipeline", "parse_pipeline"]


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read ``path`` and apply ``key.path=value`` overrides.

    Raises:
        PipelineError: the file cannot be read, is not YAML, or does not fit the schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(
            f"pipeline file {path} does not exist",
            why="every verb reads its settings from a pipeline file",
            fix="give the path of one, for example examples/demo.yaml",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"pipeline file {path} cannot be read", why=str(error)) from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PipelineError(f"{path} is not valid YAML", why=str(error), fix="mend the line that it names") from None
    if not isinstance(raw, dict):
        raise PipelineError(
            f"{path} is not a pipeline file",
            why=f"its top level is {_kind(raw)}, not a mapping",
            fix="start with the keys name and model",
        )
    for override in overrides:
        _apply(raw, override)
    return parse_pipeline(raw, str(path))


def parse_pipeline(raw: dict[str, Any], origin: str = "pipeline") -> Pipeline:
    """Validate a mapping; ``origin`` names it in errors."""
    try:
        return Pipeline.model_validate(raw)
    except ValidationError as error:
        # A misspelt key often makes another one missing: name it first.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        lines = [_explain(detail) for detail in details]
        what, why, fix = lines[0]
        more = f" (and {len(lines) - 1} more: {'; '.join(line[0] for line in lines[1:])})" if len(lines) > 1 else ""
        raise PipelineError(f"{origin}: {what}{more}", why=why, fix=fix) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise PipelineError(
            f"--set {override!r} is not key=value",
            why="an override names a field by its dotted path",
            fix="write it like --set parallel.tp=2",
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise PipelineError(f"--set {override!r}: the value is not YAML", why=str(error)) from None
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise PipelineError(
                f"--set {override!r}: {parent} is not a section",
                why=f"it holds {_kind(child)}",
                fix="see the fields with: shardyard plan --fields",
            )
        node = child
    node[leaf] = parsed


def _explain(detail: ErrorDetails) -> tuple[str, str, str]:
    """Return what, why and fix for one of pydantic's findings."""
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields_at(detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else "remove it"
        return f"unknown key {location!r}", f"known keys here: {', '.join(sorted(known))}", fix
    if detail["type"] == "missing":
        return f"key {location!r} is missing", "it has no default", "add it"
    if detail["type"] == "value_error":
        problem = str(detail.get("ctx", {}).get("error", detail["msg"]))
        message, _, possible = problem.partition("; ")
        return message if not location else f"{location}: {message}", "", possible
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{location}={detail['input']!r} is not possible", message, f"see: shardyard plan --fields ({location})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the known field names of the section at ``location``."""
    section: type[BaseModel] = Pipeline
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        models = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        section = models[0]
    return list(section.model_fields)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
