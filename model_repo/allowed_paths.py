"""Where the paths in models' parameters may lead: whoever changes a configuration must not get at other files by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardyard.errors import ArtifactError
from shardyard.manifest import is_artifact, read_manifest

__all__ = ["allowed_path", "noted_folders"]

#: The setting in the repository's manifest that holds parameter → folder beside the repository.
_FOLDERS = "folders"


def noted_folders(parameters: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the setting of ``fill`` by which these parameters may lead out of the repository; empty ones are none."""
    return {_FOLDERS: {name: value for name, value in parameters.items() if value}}


def allowed_path(repository: Path, model: str, parameter: str, value: str) -> Path:
    """Return the place that a model's parameter names, absolute or relative to the repository, symbolic links followed.

    It lies in the repository, or is the one folder that ``fill`` noted for this parameter in the repository's manifest,
    as it does for engine and adapters.

    Raises:
        ArtifactError: it is any other place.
    """
    try:
        path = (repository / value).resolve()
        if path.is_relative_to(repository.resolve()) or path == _noted(repository, parameter):
            return path
        leads = f"it leads to {path}"
    except (OSError, RuntimeError, ValueError) as error:  # Links in a circle, bytes of zero.
        leads = str(error)
    raise ArtifactError(
        f"the parameter {parameter} of {model} leads out of the model repository: {value!r}",
        why=f"{leads}, and {repository}/manifest.json does not note that for it",
        fix="set engine and adapters in the pipeline file, then: shardyard fill PIPELINE.yaml",
    )


def _noted(repository: Path, parameter: str) -> Path | None:
    noted = read_manifest(repository).settings.get(_FOLDERS, {}) if is_artifact(repository) else {}
    return (repository / noted[parameter]).resolve() if parameter in noted else None
