"""Runs the engine alone, without a server, and prints what it did: every rank of a world runs this module.

``mpirun -n N python -m mpi4py -m shardyard.perf.engine_run --engine DIR …``; rank 0 prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Output, Request
from shardyard.runtime.worker import follow

__all__ = ["Run", "ask", "main", "measure"]


@dataclass(frozen=True)
class Run:
    """One batch: rates in tokens per second; ``compute_share`` of the wall time the leader's network computed.

    Prefill: all prompts' tokens, until each sequence has the one token that it was to have: so no answers compete for
    the steps. Decode, of the same prompts, which are in the cache then: the tokens from when all answers have begun
    until the first ends.
    """

    batch: int
    prefill: float
    decode: float
    compute_share: float


def measure(executor: Executor, batch: int, prompt_tokens: int, new_tokens: int, seed: int) -> Run:
    """Send ``batch`` random prompts at once and wait until each has ``new_tokens`` tokens."""
    random = np.random.default_rng(seed)
    prompts = random.integers(3, executor.limits.vocab, (batch, prompt_tokens)).tolist()
    started = time.perf_counter()
    read = max(answer[-1][0] for answer in ask(executor, prompts, 1))
    before, began = executor.stats().compute_s, time.perf_counter()
    times = [[when for when, _ in answer] for answer in ask(executor, prompts, new_tokens)]
    all_started = max(sequence[0] for sequence in times)
    ended = max(sequence[-1] for sequence in times)
    first_ended = min(sequence[-1] for sequence in times)
    until = first_ended if first_ended > all_started else ended
    counted = sum(all_started < when <= until for sequence in times for when in sequence)
    return Run(
        batch=batch,
        prefill=batch * prompt_tokens / (read - started),
        decode=counted / (until - all_started) if counted else 0.0,
        compute_share=(executor.stats().compute_s - before) / (ended - began),
    )


def ask(executor: Executor, prompts: Sequence[list[int]], new_tokens: int) -> list[list[tuple[float, int]]]:
    """Send prompts at once and wait; return each answer's tokens and when they came, in ``time.perf_counter``'s s."""
    answers: list[list[tuple[float, int]]] = [[] for _ in prompts]
    left, done = [len(prompts)], threading.Event()

    def taker(answer: list[tuple[float, int]]) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            now = time.perf_counter()
            answer.extend((now, token) for token in output.tokens)
            if output.finished:
                left[0] -= 1
                if not left[0]:
                    done.set()

        return take

    for prompt, answer in zip(prompts, answers, strict=True):
        executor.submit(Request(prompt, new_tokens), taker(answer))
    if not done.wait(600):
        raise TimeoutError(f"{len(prompts)} answers did not end; {executor.error}")
    return answers


def _resident(ranks: int) -> int:
    """Return the bytes of memory that all ranks hold together, what they share counted once."""
    me = psutil.Process()
    launcher = me.parent() if ranks > 1 else None
    world = launcher.children(recursive=True) if launcher else [me]
    return sum(each.memory_full_info().pss for each in world)


def main() -> None:
    """Read the command line; lead or follow, as this process's rank says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="the engine's folder")
    parser.add_argument("--batches", default="1,8,16", help="batch sizes, in this order")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="measured runs per batch size; one more comes first")
    args = parser.parse_args()
    if int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")):
        follow(args.engine)
        return
    started = time.perf_counter()
    executor = Executor(args.engine)
    load_s = time.perf_counter() - started
    runs = []
    for batch in map(int, args.batches.split(",")):
        for repeat in range(args.repeats + 1):
            run = measure(executor, batch, args.prompt_tokens, args.new_tokens, seed=repeat)
            runs += [run] if repeat else []  # The first meets shapes that the plugin has not prepared yet.
    resident = _resident(executor.config.tp * executor.config.pp)
    executor.shutdown()
    sys.stdout.write(json.dumps({"load_s": load_s, "resident": resident, "runs": [asdict(run) for run in runs]}))


if __name__ == "__main__":
    main()
