"""One rank of the world that verify runs: answers prompts greedily in float32 and writes the logits of every position.

    mpirun -n 4 python -m mpi4py -m shardyard.builder.proof.verify_rank CHECKPOINT FOLDER

FOLDER holds request.json (``prompts``, ``new_tokens``) and receives tokens.json (each prompt with its answer) and
logits_{N}.npy (float32 [tokens, vocab]). Prompts run as one chunk, answers token by token from the key/value cache.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from shardyard.builder.dtypes import Array
from shardyard.builder.proof.exact_rank import exact_rank
from shardyard.runtime.attention import BLOCK_TOKENS
from shardyard.runtime.rank import RankModel
from shardyard.runtime.step_plan import StepPlan, single_prompt
from shardyard.runtime.world import World

__all__ = ["main"]


def main(checkpoint: Path, folder: Path) -> None:
    """Answer the requests in ``folder`` with the rank files in ``checkpoint``. Every rank of the world runs this."""
    request = json.loads((folder / "request.json").read_text())
    longest = max(map(len, request["prompts"])) + request["new_tokens"]
    model = exact_rank(checkpoint, "float32", longest)
    world = model.world
    answered = []
    for index, prompt in enumerate(request["prompts"]):
        tokens, logits = _answer(model, prompt, request["new_tokens"])
        answered.append(tokens)
        if world.rank == _root(world):
            np.save(folder / f"logits_{index}.npy", logits)
    if world.rank == _root(world):
        (folder / "tokens.json").write_text(json.dumps(answered))


def _answer(model: RankModel, prompt: list[int], count: int) -> tuple[list[int], Array]:
    """Return prompt and answer, and on the root rank their logits, float32 [tokens, vocab]; elsewhere empty ones."""
    tokens = list(prompt)
    rows = [_join(model, model.logits(tokens))]
    for _ in range(count):
        tokens.append(_choose(model.world, rows[-1]))
        rows.append(_join(model, model.run(_next_token(tokens))))
    return tokens, np.concatenate(rows)


def _next_token(tokens: list[int]) -> StepPlan:
    """Return the step that runs the last of ``tokens``; the cache holds those before it."""
    last = len(tokens) - 1
    whole = single_prompt(tokens, BLOCK_TOKENS)
    one = np.zeros(1, np.int32)
    return StepPlan(
        whole.tokens[last:], one + last, np.array([0, 1], np.int32), whole.blocks, whole.block_begins, one, one
    )


def _root(world: World) -> int:
    """Return the rank on which the last stage's logits come together."""
    return world.results_from[0]


def _join(model: RankModel, share: Array | None) -> Array:
    """Join the last stage's shares of the vocabulary on the root rank."""
    if share is None:
        return np.empty((0, 0), np.float32)
    if model.world.tp_comm is None:
        return share.copy()
    shares = model.world.tp_comm.gather(share.copy(), root=0)
    return np.concatenate(shares, axis=1) if shares else np.empty((0, 0), np.float32)


def _choose(world: World, logits: Array) -> int:
    """Return the likeliest token after the last position, the same on every rank."""
    token = int(logits[-1].argmax()) if world.rank == _root(world) else -1
    return token if world.comm is None else int(world.comm.bcast(token, root=_root(world)))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        # One line instead of a traceback: verify shows it to the user. The status makes mpirun end the other ranks.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(f"rank {os.environ.get('OMPI_COMM_WORLD_RANK', '0')}: {reason}\n")
        sys.stderr.flush()
        os._exit(1)
