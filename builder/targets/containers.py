"""Where trtllm-build runs: in this environment, or in the pinned image by docker, enroot or apptainer.

Folders are mounted at their own paths, so that a command reads the same inside and outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RUNNERS", "Runner"]

#: What NVIDIA's documents start the image with: NCCL needs shared and pinned memory.
_DOCKER = ("--net", "host", "--shm-size=2g", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864")


@dataclass(frozen=True)
class Runner:
    """A way to run a command. ``program`` None: it needs none.

    ``prepare`` gives, for an image and a folder, the file that must be there first and the command that makes it.
    ``wrap`` turns a command into one that runs in the image, with read-only and writable folders.
    """

    program: str | None
    wrap: Callable[[str, Sequence[Path], Path, Sequence[str]], list[str]]
    prepare: Callable[[str, Path], tuple[Path, list[str]] | None] = lambda image, folder: None


def _here(image: str, read: Sequence[Path], write: Path, command: Sequence[str]) -> list[str]:
    return list(command)


def _docker(image: str, read: Sequence[Path], write: Path, command: Sequence[str]) -> list[str]:
    mounts = [word for path in read for word in ("--volume", f"{path}:{path}:ro")]
    mounts += ["--volume", f"{write}:{write}", "--workdir", str(write)]
    return ["docker", "run", "--rm", "--gpus", "all", *_DOCKER, *mounts, image, *command]


def _enroot(image: str, read: Sequence[Path], write: Path, command: Sequence[str]) -> list[str]:
    mounts = [word for path in (*read, write) for word in ("--mount", f"{path}:{path}")]
    file, _ = _enroot_import(image, write)
    return ["enroot", "start", "--root", "--rw", *mounts, str(file), *command]


def _enroot_import(image: str, folder: Path) -> tuple[Path, list[str]]:
    """Enroot starts a file: the one that engine.image names, or one imported beside the build."""
    if image.endswith(".sqsh"):
        return Path(image), ["test", "-f", image]
    host, _, name = image.partition("/")
    file = folder.parent / f"{name.rpartition('/')[2].replace(':', '-').replace('@', '-')}.sqsh"
    return file, ["enroot", "import", "--output", str(file), f"docker://{host}#{name}"]


def _apptainer(image: str, read: Sequence[Path], write: Path, command: Sequence[str]) -> list[str]:
    mounts = [word for path in read for word in ("--bind", f"{path}:{path}:ro")]
    mounts += ["--bind", f"{write}:{write}", "--pwd", str(write)]
    source = image if image.endswith(".sif") else f"docker://{image}"
    return ["apptainer", "exec", "--nv", "--cleanenv", *mounts, source, *command]


RUNNERS = {
    "here": Runner(None, _here),
    "docker": Runner("docker", _docker),
    "enroot": Runner("enroot", _enroot, _enroot_import),
    "apptainer": Runner("apptainer", _apptainer),
}
