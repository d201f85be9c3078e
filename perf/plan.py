"""What the load generator's process is told: a JSON file, so that it shares no objects with ours."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shardyard.endpoint import Endpoint
from shardyard.perf_spec import PerfSpec

__all__ = ["LOAD", "LOCUST_CSV", "PLAN_VARIABLE", "RECORDS", "STATUS", "WORKLOAD", "Plan", "make_plan", "read_plan"]

#: Environment variable that names the plan's file to locustfile.py.
PLAN_VARIABLE = "SHARDYARD_PERF_PLAN"

#: Files of a run, below ``Plan.folder``. The workload is read; the others are written.
WORKLOAD = "workload.json"
STATUS = "status.json"
RECORDS = "records.jsonl"
LOAD = "load_generator.json"
LOCUST_CSV = "locust_stats.csv"


@dataclass(frozen=True)
class Plan:
    """One load test. Rates in requests per second, times in seconds.

    ``endless``: go on until told to stop, using the prompts again and again (locust's web page).
    """

    folder: str
    protocol: Literal["grpc", "http"]
    model: str
    host: str
    http_port: int
    grpc_port: int
    arrival: Literal["closed", "poisson"]
    concurrency: int
    rate: float | None
    requests: int | None
    duration_s: float | None
    warmup_requests: int
    request_timeout_s: float
    seed: int
    endless: bool = False

    @property
    def users(self) -> int:
        """Number of locust users. A Poisson clock is one user that starts every request."""
        return self.concurrency if self.arrival == "closed" else 1

    def path(self, name: str) -> Path:
        """Return the path of one of the run's files."""
        return Path(self.folder) / name

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def make_plan(spec: PerfSpec, endpoint: Endpoint, folder: Path, *, endless: bool = False) -> Plan:
    """Join what the pipeline file asks for with the endpoint's address."""
    shared = {field.name for field in fields(Plan)} & set(PerfSpec.model_fields)
    settings: dict[str, Any] = {name: getattr(spec, name) for name in shared}
    return Plan(
        folder=str(folder.absolute()),
        host=endpoint.host,
        http_port=endpoint.http_port,
        grpc_port=endpoint.grpc_port,
        endless=endless,
        **settings,
    )


def read_plan(path: Path) -> Plan:
    """Read a plan that ``write`` wrote."""
    return Plan(**json.loads(path.read_text(encoding="utf-8")))
