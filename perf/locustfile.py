"""What ``locust -f`` loads: users, workload and watch, put together by the plan that an environment variable names.

Locust has patched the standard library before this file is read; gRPC is patched here, before any channel exists.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent as grpc_gevent
from locust import events
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

from shardyard.perf.desk import Desk
from shardyard.perf.plan import LOAD, LOCUST_CSV, PLAN_VARIABLE, RECORDS, WORKLOAD, read_plan
from shardyard.perf.records import Record, write_records
from shardyard.perf.users import ARRIVALS, LANES
from shardyard.perf.watch import Watch
from shardyard.perf.workload import read_workload

#: Threads for gRPC, one per open channel. gevent's default is 10; with more channels than threads a response waits up
#: to 200 ms (the length of one poll of a channel's queue) until a thread looks at its channel.
MOST_CHANNELS = 2048

grpc_gevent.init_gevent()
gevent.get_hub().threadpool.maxsize = MOST_CHANNELS

PLAN = read_plan(Path(os.environ[PLAN_VARIABLE]))
LOAD_USER = ARRIVALS[PLAN.arrival]


class StreamUser(LOAD_USER):  # type: ignore[misc,valid-type]
    """The kind of user that the plan asks for."""

    host = f"{PLAN.host}:{PLAN.grpc_port if PLAN.protocol == 'grpc' else PLAN.http_port}"


class _Run:
    """One start of the users; locust's web page can start them again and again."""

    def __init__(self) -> None:
        self.desk = Desk(PLAN, read_workload(PLAN.path(WORKLOAD)))
        self.watch = Watch(self.desk)
        # The two clocks, read together: records count from the first, the report gives the time of day.
        self.origin_ns, self.origin_unix_s = time.perf_counter_ns(), time.time()

    def watch_until_over(self, environment: Any) -> None:
        self.watch.run()
        if not PLAN.endless:
            environment.runner.quit()

    def write(self) -> None:
        write_records(PLAN.path(RECORDS), self._records())
        load = {
            **self.watch.report(),
            "aborted": self.desk.aborted,
            "origin_ns": self.origin_ns,
            "origin_unix_s": self.origin_unix_s,
            "versions": {name: version(name) for name in ("locust", "gevent", "grpcio")},
            "processes": 1,
        }
        PLAN.path(LOAD).write_text(json.dumps(load, indent=1) + "\n", encoding="utf-8")

    def _records(self) -> list[Record]:
        lane = LANES[PLAN.protocol](PLAN)
        records = []
        for ticket, exchange in self.desk.done:
            chunks = lane.texts(exchange)
            records.append(
                Record(
                    index=ticket.index,
                    warmup=ticket.warmup,
                    due_ns=None if ticket.due_ns is None else ticket.due_ns - self.origin_ns,
                    start_ns=exchange.start_ns - self.origin_ns,
                    end_ns=exchange.end_ns - self.origin_ns,
                    chunk_ns=tuple(when - self.origin_ns for when, _ in chunks),
                    texts=tuple(text for _, text in chunks),
                    input_tokens=ticket.prompt.input_tokens,
                    requested_tokens=ticket.prompt.output_tokens,
                    error=None if exchange.error is None else str(exchange.error),
                )
            )
        return records


_runs: list[_Run] = []


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _start(environment: Any, **_: Any) -> None:
    run = _Run()
    _runs[:] = [run]
    LOAD_USER.desk = run.desk
    gevent.spawn(run.watch_until_over, environment)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write(environment: Any, **_: Any) -> None:
    if _runs and not PLAN.endless:
        _runs[0].write()
        # Locust's option --csv leaves out what happened in the last second; this is the same table, whole.
        with PLAN.path(LOCUST_CSV).open("w", newline="", encoding="utf-8") as file:
            StatsCSV(environment, PERCENTILES_TO_REPORT).requests_csv(csv.writer(file))


@events.quit.add_listener  # type: ignore[untyped-decorator]
def _leave(exit_code: int, **_: Any) -> None:
    """Leave at once: all is written, and the interpreter's own end may wait for ever for gRPC's polling threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
