"""Every rank of an engine: the leader runs the requests of a JSON file and prints what came of them.

Arguments: the engine, the requests, seconds to idle, the adapters' folder. SHARDYARD_TEST_HIDDEN names an adapter that
the other ranks do not find.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
from mpi4py import MPI

from shardyard.runtime.adapters import loading
from shardyard.runtime.executor import Executor
from shardyard.runtime.request import Request, SamplingParams
from shardyard.runtime.worker import follow


def lead(engine: Path, requests: list[dict], idle: float, lora_dir: Path | None) -> dict:
    executor = Executor(engine, lora_dir=lora_dir)
    Path("ready").touch()
    answers = [{"tokens": [], "log_probs": []} for _ in requests]
    left, all_done = [len(requests)], threading.Event()

    def taker(answer: dict):
        def take(output) -> None:
            answer["tokens"] += output.tokens
            answer["log_probs"] += output.log_probs or []
            if output.context_logits is not None:
                answer["context"] = output.context_logits.tolist()
            if output.cum_log_prob is not None:
                answer.setdefault("beams", []).append([output.tokens, output.cum_log_prob])
            if output.finished:
                answer["reason"] = output.finish_reason
                left[0] -= 1
                if not left[0]:
                    all_done.set()

        return take

    for raw, answer in zip(requests, answers, strict=True):
        executor.submit(Request(**{**raw, "sampling": SamplingParams(**raw.get("sampling", {}))}), taker(answer))
    if requests and not all_done.wait(50):
        raise TimeoutError("requests are unfinished")
    busy = cpu_while(idle)
    stats = executor.stats()
    executor.shutdown()
    return {
        "answers": answers,
        "idle_cpu": busy,
        "steps": stats.steps,
        "drafted": stats.draft_tokens,
        "ranks": [asdict(rank) for rank in stats.ranks],
    }


def cpu_while(seconds: float) -> float:
    """Return the CPU time that all ranks take per second while nothing is asked of them."""
    if not seconds:
        return 0.0
    time.sleep(min(seconds, 1.2))  # The waits have cooled down by then.
    ranks = [p for p in psutil.Process().parent().children(recursive=True) if "generate.py" in " ".join(p.cmdline())]
    before = [sum(p.cpu_times()[:2]) for p in ranks]
    time.sleep(seconds)
    after = [sum(p.cpu_times()[:2]) for p in ranks]
    return max(b - a for a, b in zip(before, after, strict=True)) / seconds


engine, requests, idle = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), float(sys.argv[3])
if MPI.COMM_WORLD.Get_rank():
    hidden, read = os.environ.get("SHARDYARD_TEST_HIDDEN"), loading.read_peft
    if hidden:
        loading.read_peft = lambda folder: read(folder / "hidden" if str(folder) == hidden else folder)
    follow(engine)
else:
    lora_dir = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    print(json.dumps(lead(engine, requests, idle, lora_dir)))
