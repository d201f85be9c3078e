"""Where a pipeline's artifacts lie: ``work/<name>/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["WorkFolder"]


@dataclass(frozen=True)
class WorkFolder:
    """The folders of one pipeline. A stage reads the folders before its own and writes only its own."""

    root: Path

    @property
    def source(self) -> Path:
        """What ``convert`` downloads, where the source is on the hub."""
        return self.root / "source"

    @property
    def checkpoint(self) -> Path:
        """Rank files, written by ``convert``."""
        return self.root / "checkpoint"

    @property
    def certificate(self) -> Path:
        """What ``verify`` found."""
        return self.root / "certificate"

    @property
    def engine(self) -> Path:
        """One engine file per rank, written by ``build``."""
        return self.root / "engine"

    @property
    def model_repo(self) -> Path:
        """The Triton model repository, written by ``fill``."""
        return self.root / "model_repo"

    @property
    def logs(self) -> Path:
        """One log per rank of the running or last endpoint."""
        return self.root / "logs"

    @property
    def endpoint(self) -> Path:
        """Address of the running endpoint, written by ``serve``."""
        return self.root / "endpoint.json"

    @property
    def perf(self) -> Path:
        """One folder per load test."""
        return self.root / "perf"
