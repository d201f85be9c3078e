"""llama.cpp through ``llama_decode``: ``python llama.py MODEL THREADS PROMPT NEW REPEATS BATCH …``; prints JSON.

MODEL is a GGUF file. Greedy tokens are chosen here; the batch of every step is the core of llama.cpp's own server.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

#: Tokens that a step takes, as this engine's benchmark has it.
STEP_TOKENS = 256


class Engine:
    """A model and its cache."""

    def __init__(self, library: Any, path: str, threads: int, sequences: int, tokens: int) -> None:
        self._llama = library
        library.llama_backend_init()
        self._quiet = library.llama_log_callback(lambda *_: None)
        library.llama_log_set(self._quiet, ctypes.c_void_p(0))
        options = library.llama_model_default_params()
        options.use_extra_bufts = False  # Its tiles of AMX fault with Q8_0 weights, as built from 0.3.36.
        model = library.llama_model_load_from_file(path.encode(), options)
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = tokens, sequences, True
        settings.n_batch = settings.n_ubatch = STEP_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        self._context = library.llama_init_from_model(model, settings)
        self.vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._batch = library.llama_batch_init(STEP_TOKENS, 0, sequences)

    def clear(self) -> None:
        """Forget all sequences."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def step(self, tokens: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Run (token, position, sequence, wanted) and return the likeliest tokens after the wanted ones."""
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        status = self._llama.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = (self._llama.llama_get_logits_ith(self._context, i) for i, each in enumerate(tokens) if each[3])
        return [int(np.ctypeslib.as_array(row, (self.vocab,)).argmax()) for row in rows]


def run(engine: Engine, batch: int, prompt: int, new: int) -> dict[str, float]:
    """Prefill ``batch`` prompts, decode ``new`` tokens of each, return the rates."""
    import numpy as np

    engine.clear()
    prompts = np.random.default_rng(0).integers(3, engine.vocab, (batch, prompt)).tolist()
    parts = [(t, p, s, p == prompt - 1) for s, tokens in enumerate(prompts) for p, t in enumerate(tokens)]
    started = time.perf_counter()
    last: list[int] = []
    for first in range(0, len(parts), STEP_TOKENS):
        last += engine.step(parts[first : first + STEP_TOKENS])
    prefilled = time.perf_counter()
    for position in range(prompt, prompt + new - 1):
        last = engine.step([(token, position, sequence, True) for sequence, token in enumerate(last)])
    ended = time.perf_counter()
    rates = {"prefill": batch * prompt / (prefilled - started), "decode": batch * (new - 1) / (ended - prefilled)}
    return {"batch": batch, "compute_share": 1.0, **rates}


def main() -> None:
    """Read the command line, run every batch size, print what came of it."""
    import llama_cpp

    path, threads, prompt, new, repeats, *batches = sys.argv[1], *map(int, sys.argv[2:])
    engine = Engine(llama_cpp, path, threads, max(batches), max(batches) * (prompt + new))
    runs = []
    for batch in batches:
        done = [run(engine, batch, prompt, new) for _ in range(repeats + 1)]
        runs += done[1:]
    sys.stdout.write(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
