"""Between Triton's Python backend and plain arrays. Only Triton's stub can import this module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from shardyard.errors import ArtifactError, BusyError, ShardyardError
from shardyard.model_repo.allowed_paths import allowed_path

__all__ = ["Settings", "error_response", "read_tensors", "response"]


@dataclass(frozen=True)
class Settings:
    """What Triton tells a model at its start."""

    name: str
    version: str
    repository: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, args: Mapping[str, str]) -> Settings:
        """Read the arguments of ``initialize``."""
        folder = Path(args["model_repository"])
        return cls(args["model_name"], args["model_version"], folder.parent, json.loads(args["model_config"]))

    def parameter(self, name: str) -> str:
        """Return a parameter of the configuration.

        Raises:
            ArtifactError: it has none of that name.
        """
        try:
            return str(self.config["parameters"][name]["string_value"])
        except KeyError:
            raise ArtifactError(
                f"the configuration of {self.name} has no parameter {name}",
                why="the model cannot start without it",
                fix="make the repository again: shardyard fill PIPELINE.yaml",
            ) from None

    def flag(self, name: str) -> bool:
        """Return a parameter that is true or false."""
        return self.parameter(name) == "true"

    def path(self, name: str) -> Path:
        """Return a parameter that is a path, absolute or relative to the repository.

        Raises:
            ArtifactError: it leads out of the repository, and not to where ``fill`` has noted.
        """
        return allowed_path(self.repository, self.name, name, self.parameter(name))

    def inputs(self) -> frozenset[str]:
        """Return the names of the model's inputs."""
        return frozenset(tensor["name"] for tensor in self.config["input"])


def read_tensors(request: Any) -> dict[str, npt.NDArray[Any]]:
    """Return a request's tensors. They are copies: Triton takes its memory back when ``execute`` returns."""
    return {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}


def response(arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Return a response with tensors."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def error_response(error: Exception | str) -> Any:
    """Return a response that is an error, in one line and without a traceback."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(_one_line(error), _code(error)))


def _code(error: Exception | str) -> Any:
    """Return the status that clients see: UNAVAILABLE is worth another try, INVALID_ARG never is."""
    if isinstance(error, BusyError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, ShardyardError) else pb_utils.TritonError.INTERNAL


def _one_line(error: Exception | str) -> str:
    """Return what, why and fix in one line."""
    if isinstance(error, ShardyardError):
        what = f"{error.what}: {error.why}" if error.why else error.what
        return f"{what}; {error.fix}" if error.fix else what
    return error if isinstance(error, str) else f"internal error: {type(error).__name__}: {error}"
