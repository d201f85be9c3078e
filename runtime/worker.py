"""A rank that follows: ``python -m mpi4py -m shardyard.runtime.worker --engine DIR``.

It runs the leader's steps until the leader says stop. Whatever goes wrong here ends the whole world, with the reason on
standard error: a rank that is missing would leave the others waiting.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from shardyard.errors import ShardyardError
from shardyard.heartbeat import Heartbeat
from shardyard.log import Log
from shardyard.runtime.adapters.loading import AdapterLoader
from shardyard.runtime.adapters.orders import LoadOrder
from shardyard.runtime.engine_config import read_engine_config
from shardyard.runtime.loading import load_rank
from shardyard.runtime.rank import RankModel
from shardyard.runtime.rank_times import TimesReport
from shardyard.runtime.results import pack_result
from shardyard.runtime.step_plan import StepPlan
from shardyard.runtime.watch import LeaderWatch
from shardyard.runtime.world import World

__all__ = ["follow", "main"]


def follow(folder: Path) -> None:
    """Load this process's rank of the engine in ``folder`` and run steps until told to stop."""
    config = read_engine_config(folder)
    world = World(config.tp, config.pp, config.cp)
    watch = LeaderWatch(world.leader_process)
    log = Log.of_launch(f"rank{world.rank}")
    try:
        model = load_rank(folder, config, world)
        Heartbeat(world.rank, "worker", working_s=lambda: model.working_s)
        log.event("loaded", engine=str(folder))
        loader, times = AdapterLoader(model), TimesReport(model.times, world.send_times)
        while (order := world.receive_order(lambda: _report(loader, times, world))) is not None:
            if isinstance(order, LoadOrder):
                loader.start(order)
            else:
                _run(model, order, world)
                times.stepped()
        watch.stop()
        loader.close()
        world.flush()
        log.event("unloaded", steps=model.steps)
    except ShardyardError as error:
        log.event("failed", error=type(error).__name__)
        world.abort(str(error))
        raise
    except BaseException as error:
        log.event("failed", error=type(error).__name__)
        world.abort(traceback.format_exc())
        raise


def _run(model: RankModel, plan: StepPlan, world: World) -> None:
    logits = model.run(plan)
    if world.rank in world.results_from and logits is not None and len(plan.samples):
        world.send_result(pack_result(logits, model.best(), plan, model.spec.vocab_start))


def _report(loader: AdapterLoader, times: TimesReport, world: World) -> None:
    times.look()
    for loaded in loader.finished():
        world.send_loaded(loaded)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="shardyard.runtime.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="the engine's folder")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in a terminal reaches all ranks: no traceback for it.
    try:
        follow(parser.parse_args(argv).engine)
    except ShardyardError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
