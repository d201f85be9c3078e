"""One rank of the world that measures perplexity: runs windows of a text and adds up the losses of their tokens.

    mpirun -n 2 python -m mpi4py -m shardyard.builder.proof.perplexity_rank CHECKPOINT FOLDER

FOLDER holds request.json (``weights``, the engine's type of them, and ``windows``) and receives losses.json, the sum of
the counted tokens' negative log-likelihoods of each window, in nats. Ranks that share the vocabulary exchange two
numbers per token, not logits.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.proof.exact_rank import exact_rank
from shardyard.runtime.rank import RankModel

__all__ = ["main"]


def main(checkpoint: Path, folder: Path) -> None:
    """Run the windows in ``folder`` with the rank files in ``checkpoint``. Every rank of the world runs this."""
    request = json.loads((folder / "request.json").read_text())
    longest = max(len(window["tokens"]) for window in request["windows"])
    model = exact_rank(checkpoint, request["weights"], longest)
    losses = [_loss(model, window) for window in request["windows"]]
    if model.world.rank == model.world.results_from[0]:
        (folder / "losses.json").write_text(json.dumps(losses))


def _loss(model: RankModel, window: dict[str, Any]) -> float:
    """Return the sum of the losses of a window's counted tokens; 0 where the logits are not."""
    logits = model.logits(window["tokens"])
    if logits is None:
        return 0.0
    count = window["counted"]
    wanted = np.array(window["tokens"][-count:])
    share = _share(logits[-count - 1 : -1], wanted, model.spec.vocab_start)
    comm = model.world.tp_comm
    shares = [share] if comm is None else comm.gather(share, root=0)
    return _join(shares) if shares else 0.0


def _share(logits: NDArray[np.float32], wanted: NDArray[Any], start: int) -> NDArray[np.float64]:
    """Return, per token, the log of the sum of this share's exponentials, and the wanted logit or -inf: [2, tokens]."""
    rows = logits.astype(np.float64)
    largest = rows.max(axis=1)
    total = largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1))
    local = wanted - start
    mine = (local >= 0) & (local < rows.shape[1])
    picked = rows[np.arange(len(rows)), np.where(mine, local, 0)]
    return np.stack([total, np.where(mine, picked, -np.inf)])


def _join(shares: list[NDArray[np.float64]]) -> float:
    totals, picked = np.stack(shares, axis=1)
    return float((np.logaddexp.reduce(totals, axis=0) - picked.max(axis=0)).sum())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        # One line instead of a traceback: the caller shows it to the user. The status makes mpirun end the other ranks.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(f"rank {os.environ.get('OMPI_COMM_WORLD_RANK', '0')}: {reason}\n")
        sys.stderr.flush()
        os._exit(1)
