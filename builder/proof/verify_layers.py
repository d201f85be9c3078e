"""One rank of the world that runs rank files layer by layer; rank 0 runs the reference beside it and compares.

    mpirun -n 4 python -m mpi4py -m shardyard.builder.proof.verify_layers CHECKPOINT SOURCE FOLDER

There are as many processes as tensor-parallel ranks; they take the pipeline stages in turn. FOLDER holds request.json
(``prompts``, ``parallel``) and receives figures.json: ``layers``, ``prompts``, and the ranks' ``peak_bytes``; until
then a line in ``progress`` for each part that was compared.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardyard.builder.proof.asked import reference_of
from shardyard.builder.proof.following import PROGRESS, append_line
from shardyard.builder.proof.layer_figures import compare_logits, measure
from shardyard.builder.proof.layer_stream import LayerStream
from shardyard.builder.source.checkpoint import open_source
from shardyard.spec import ParallelSpec

__all__ = ["main"]

Row = dict[str, Any]


def main(checkpoint: Path, source: Path, folder: Path) -> None:
    """Compare the layers of the rank files with the source's. Every rank of the world runs this."""
    request = json.loads((folder / "request.json").read_text())
    prompts, parallel = request["prompts"], ParallelSpec(**request["parallel"])
    threads = max(1, (os.cpu_count() or 1) // parallel.tp)
    stream = LayerStream(checkpoint, parallel.tp, parallel.pp, prompts, threads)
    leads = stream.world.leader
    reference = reference_of(open_source(source), checkpoint, parallel) if leads else None
    layers: list[Row] = []
    answered: list[Row] = []
    wanted = None
    for index, hidden in enumerate(stream.hidden_states()):
        if reference:
            spans = reference.spans(prompts)
            wanted = reference.embed(prompts) if wanted is None else reference.layer(index - 1, wanted, spans)
            measured = measure(f"layer {index - 1}" if index else "embedding", hidden, wanted)
            layers.append(asdict(measured))
            append_line(folder / PROGRESS, f"{measured.part}: off by {measured.max_rel:.1e}")
    for logits, (start, stop) in zip(stream.logits(hidden), _spans(prompts), strict=True):
        if reference and logits is not None and wanted is not None:
            answered.append(asdict(compare_logits(stop - start, logits, reference.head(wanted[start:stop]))))
    peaks = _peaks(stream)
    if leads:
        figures = {"layers": layers, "prompts": answered, "peak_bytes": peaks}
        (folder / "figures.json").write_text(json.dumps(figures))


def _spans(prompts: list[list[int]]) -> list[tuple[int, int]]:
    ends = [sum(map(len, prompts[: count + 1])) for count in range(len(prompts))]
    return [(end - len(prompt), end) for prompt, end in zip(prompts, ends, strict=True)]


def _peaks(stream: LayerStream) -> list[int]:
    """Return each process's largest resident memory so far, in bytes; it includes the files' pages that it has read."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    comm = stream.world.comm
    return [peak] if comm is None else comm.gather(peak) or []


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:4]))
    except Exception as error:
        # One line instead of a traceback: verify shows it to the user. The status makes mpirun end the other ranks.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(f"rank {os.environ.get('OMPI_COMM_WORLD_RANK', '0')}: {reason}\n")
        sys.stderr.flush()
        os._exit(1)
