"""Where figures come from: machine, versions, command, the chain of artifacts back to the source checkpoint."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from shardyard.chain import walk
from shardyard.endpoint import Endpoint
from shardyard.errors import ArtifactError, LaunchError
from shardyard.manifest import is_artifact
from shardyard.spec import Pipeline
from shardyard.toolchain import cpu_features, cpu_model, describe

__all__ = ["PACKAGES", "Artifact", "Hardware", "Provenance", "check_endpoint", "collect"]

#: What the load generator's figures depend on.
PACKAGES = ("locust", "gevent", "grpcio", "tritonclient", "tokenizers", "numpy", "openvino", "mpi4py")
ANSWER_TIMEOUT_S = 10.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hardware(_Part):
    """The machine that the load generator ran on; with a local endpoint also the endpoint's."""

    cpu: str
    cpu_features: list[str]
    physical_cores: int | None
    usable_cores: int
    memory_bytes: int
    system: str


class Artifact(_Part):
    """One link of the chain: a stage, the content key of what it made, when, and its folder's name."""

    stage: str
    key: str
    created: str
    folder: str


class Provenance(_Part):
    """All that a reader needs to judge a figure, or to measure it again."""

    command: str
    locust_command: str
    pipeline: dict[str, Any]
    endpoint: str
    server: str
    versions: dict[str, str]
    hardware: Hardware
    chain: list[Artifact]
    chain_fault: str | None


def check_endpoint(endpoint: Endpoint, model: str) -> str:
    """Make sure that a model is ready to be asked; return the server's name and version.

    Raises:
        LaunchError: nobody answers, or the model is not ready.
    """
    try:
        with urllib.request.urlopen(f"{endpoint.http_url}/v2/models/{model}/ready", timeout=ANSWER_TIMEOUT_S):
            pass
        with urllib.request.urlopen(f"{endpoint.http_url}/v2", timeout=ANSWER_TIMEOUT_S) as answer:
            server = json.load(answer)
        return f"{server.get('name', 'unknown')} {server.get('version', 'unknown')}"
    except (OSError, ValueError) as error:
        status = error.code if isinstance(error, urllib.error.HTTPError) else None
        why = f"the server answered with status {status}" if status else f"{endpoint.http_url}: {error}"
        raise LaunchError(
            f"the model {model} is not ready, so there is nothing to measure",
            why=why,
            fix="see whether shardyard serve is running and ready, and which model perf.model names",
        ) from None


def collect(pipeline: Pipeline, endpoint: Endpoint, server: str, model_repo: Path, locust: list[str]) -> Provenance:
    """Gather everything. A broken chain of artifacts is told, not refused: the endpoint was measured all the same."""
    chain, fault = _chain(model_repo)
    return Provenance(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        locust_command=shlex.join(["locust", *(Path(word).name if "/" in word else word for word in locust[3:])]),
        pipeline=pipeline.model_dump(mode="json"),
        endpoint=f"{endpoint.host}, HTTP {endpoint.http_port}, gRPC {endpoint.grpc_port}",
        server=server,
        versions=describe(*PACKAGES),
        hardware=_hardware(),
        chain=chain,
        chain_fault=fault,
    )


def _hardware() -> Hardware:
    return Hardware(
        cpu=cpu_model(),
        cpu_features=cpu_features(),
        physical_cores=psutil.cpu_count(logical=False),
        usable_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def _chain(model_repo: Path) -> tuple[list[Artifact], str | None]:
    if not is_artifact(model_repo):
        return [], f"{model_repo} holds no manifest, so what it was made from is not known"
    try:
        links = walk(model_repo)
    except ArtifactError as error:
        return [], f"{error.what}: {error.why}"
    found = [
        Artifact(
            stage=link.manifest.stage, key=link.manifest.key, created=link.manifest.created, folder=link.folder.name
        )
        for link in links
    ]
    return found, None
