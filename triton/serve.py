"""Launches an endpoint and keeps it: Triton and its workers as one MPI world, supervised until it is stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from shardyard.console import Console
from shardyard.endpoint import Endpoint
from shardyard.errors import ArtifactError, LaunchError
from shardyard.heartbeat import PERIOD, RESTARTS
from shardyard.log import events_log
from shardyard.mpi import of_one_machine
from shardyard.serve_spec import ServeSpec
from shardyard.spec import Pipeline
from shardyard.triton.end_signals import EndSignals
from shardyard.triton.forms import choose_form
from shardyard.triton.front.process import front_command
from shardyard.triton.front.tls import check_tls, client_tls
from shardyard.triton.health import probe as one_token
from shardyard.triton.host_check import check_hosts
from shardyard.triton.launcher import choose_launcher
from shardyard.triton.ports import LOOPBACK, Ports, choose_ports
from shardyard.triton.preflight import check_connections
from shardyard.triton.readiness import Readiness
from shardyard.triton.run_folder import RunFolder
from shardyard.triton.start import Probe, wait_until_ready
from shardyard.triton.supervisor import Supervisor
from shardyard.triton.world import World

__all__ = ["Server", "launch", "print_launch"]

#: The address that means all of this machine's; its own clients connect to the loopback.
_EVERYWHERE = "0.0.0.0"

#: What begins another program in a launcher's command line.
_PROGRAM = re.compile(r" (: |--ranks=)")

#: Seconds in which the supervisor notices the dead rank behind a failed request.
_NOTICE = 0.5

#: Seconds after which a wait looks for signals again: one that comes just before it blocks does not end it.
_SIGNAL_LOOK = 0.5


class Server:
    """A running endpoint. As a context manager it ends every process that it started."""

    def __init__(self, endpoint: Endpoint, supervisor: Supervisor, console: Console) -> None:
        self.endpoint = endpoint
        self.supervisor = supervisor
        self._console = console
        self._signals = EndSignals()
        self._signals.install()

    def wait(self) -> None:
        """Block until Ctrl-C, SIGTERM or SIGHUP, and then until open requests are finished; a second one ends that.

        Raises:
            RankError: a rank ended before that.
        """
        try:
            while not self.supervisor.ended.wait(_SIGNAL_LOOK):
                pass
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):
                self._drain()
        if self.supervisor.error:
            raise self.supervisor.error

    def _drain(self) -> None:
        """Take no more requests; wait until the open ones have been answered, but no longer than the limit."""
        limit = self.supervisor.spec.drain_timeout_s
        self.supervisor.drain()
        deadline = time.monotonic() + limit
        said = False
        while (left := self.supervisor.open_requests()) != 0 and time.monotonic() < deadline:
            if left and not said:
                self._console.stage(
                    "serve", f"finishing {left} open request(s), at most {limit:g} s; again: end at once"
                )
                said = True
            if self.supervisor.ended.wait(PERIOD / 5):
                return
        if left:
            self._console.stage("serve", f"{left} request(s) are not finished after {limit:g} s and are cut off")

    def stop(self) -> None:
        """End the endpoint; when this returns, nothing that it started runs."""
        self._signals.mute()
        try:
            self.supervisor.stop(self.supervisor.spec.stop_timeout_s)
        finally:
            self._signals.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. A request that failed since a rank died is reported as that rank's death."""
        if isinstance(raised, LaunchError):
            self.supervisor.failing.wait(_NOTICE)
        self.stop()
        error = self.supervisor.error
        if error and error is not raised and (raised is None or isinstance(raised, LaunchError)):
            raise error from raised


def launch(
    pipeline: Pipeline,
    model_repo: Path,
    logs: Path,
    console: Console,
    *,
    world: World | None = None,
    probe: Probe = one_token,
    restarts: int = 0,
) -> Server:
    """Start the endpoint of a model repository and return it when it has answered.

    Args:
        pipeline: its ``serve`` section says where to listen and how long to wait.
        model_repo: what ``fill`` wrote.
        logs: takes ``rank{N}.log`` and ``mpirun.log`` of this launch; those of an earlier one are removed.
        console: shows the progress.
        world: ranks and workers; by default what the repository's engine needs.
        probe: the question that a ready endpoint must have answered.
        restarts: how often this endpoint was launched before; a metric says so.

    Raises:
        ToolchainError: no tritonserver, or no MPI.
        ArtifactError: the repository or its engine is unfinished.
        LaunchError: a port is in use, a rank ended, or the endpoint was not ready in time.
    """
    spec, logs, model_repo = pipeline.serve, logs.resolve(), model_repo.resolve()
    models = _count_models(model_repo)
    form = choose_form(pipeline, model_repo, world)
    world = form.world
    launcher, placement = choose_launcher(spec, world.ranks, form.mpirun(look=True))
    shares = form.shares(placement)
    form.check(launcher, next(iter(shares.values())), console)
    if spec.grpc_front or spec.http_front:
        check_connections(spec.max_connections)
    check_tls(spec.tls)
    if placement.elsewhere and world.engine:
        check_hosts(shares, world.engine, launcher, spec.start_timeout_s)
    files, ports = form.server(look=True), choose_ports(spec)
    _empty(logs, again=restarts > 0)
    endpoint = _endpoint(spec, ports, model_repo)
    server = Server(endpoint, Supervisor(RunFolder.make(), logs, placement, world.ranks, spec, launcher.name), console)
    try:
        console.stage("serve", f"starting {world.ranks} rank{'s' * (world.ranks > 1)} with {files.describe()}")
        run = server.supervisor.run
        server.supervisor.log.event("starting", ranks=world.ranks, server=str(files.binary), restarts=restarts)
        report_to = server.supervisor.listen()
        command = form.command(
            spec, launcher, ports, world, placement, report_to, model_repo, files, run.path, run.token, logs
        )
        command.prepare()
        environment = {**command.environment(), RESTARTS: str(restarts)}
        environment |= of_one_machine() if command.shares_memory else {}
        shortcut = run.shortcut if command.shortens else None
        server.supervisor.start(command.command(), environment, front_command(spec, ports, logs, shortcut))
        # Past the front: its silence is its own.
        inner = replace(endpoint, host=LOOPBACK, http_port=ports.inner_http) if ports.inner_http else endpoint
        wait_until_ready(server.supervisor, endpoint, inner, models, spec.start_timeout_s, probe, console)
        server.supervisor.endpoint_is_ready(endpoint, inner, Readiness(inner, run.token), command.load(endpoint))
    except BaseException:
        server.stop()
        raise
    return server


def _endpoint(spec: ServeSpec, ports: Ports, model_repo: Path) -> Endpoint:
    host = LOOPBACK if ports.address == _EVERYWHERE else ports.address
    return Endpoint(host, ports.http, ports.grpc, ports.metrics, os.getpid(), str(model_repo), client_tls(spec.tls))


def print_launch(pipeline: Pipeline, model_repo: Path, logs: Path) -> str:
    """Return the command that ``launch`` would start, a line for each of its programs; nothing is started.

    Where a launch has places of its own, it says RUN and TOKEN.

    Raises:
        ShardyardError: as ``launch``, for what can be seen before anything starts.
    """
    form = choose_form(pipeline, model_repo)
    files, world = form.server(look=False), form.world
    # Whoever runs the command has no front: Triton serves all by itself.
    spec = pipeline.serve.without_front()
    ports, (launcher, placement) = choose_ports(spec), choose_launcher(spec, world.ranks, form.mpirun(look=False))
    report_to = "TOKEN@HOST:PORT" if placement.elsewhere else None
    command = form.command(
        spec,
        launcher,
        ports,
        world,
        placement,
        report_to,
        model_repo.resolve(),
        files,
        Path("RUN"),
        "TOKEN",
        logs.resolve(),
    )
    line = _PROGRAM.sub(r" \\\n    \1", shlex.join(command.command()))
    environment = (f"{name}={shlex.quote(value)}" for name, value in command.environment().items())
    return f"{' '.join(environment)} \\\n{line}"


def _count_models(model_repo: Path) -> int:
    models = len(list(model_repo.glob("*/config.pbtxt")))
    if not models:
        raise ArtifactError(
            f"{model_repo} is not a model repository",
            why="it has no folder with a config.pbtxt",
            fix="make it: shardyard fill PIPELINE.yaml",
        )
    return models


def _empty(logs: Path, *, again: bool) -> None:
    """Make the folder, without the logs of an earlier launch; that of events goes on where one is started ``again``."""
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("*.log"):
        if not (again and log == events_log(logs)):
            log.unlink()
