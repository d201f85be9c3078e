"""OpenVINO GenAI: ``python genai.py MODEL THREADS PROMPT NEW REPEATS BATCH …``; prints rates as one JSON document.

MODEL is a folder that optimum-intel exported. A batch runs with one new token and with all; the difference is decoding.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Read the command line, run every batch size, print what came of it."""
    import numpy as np
    import openvino
    import openvino_genai

    model, threads, prompt, new, repeats, *batches = sys.argv[1], *map(int, sys.argv[2:])
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = 1, False
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 512, max(batches)
    # The settings at which it is fastest here: as this engine's without its own products.
    settings = {"INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", settings)
    random = np.random.default_rng(0)

    def seconds(batch: int, count: int) -> float:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        prompts: list[Any] = [openvino.Tensor(random.integers(3, 30000, (1, prompt))) for _ in range(batch)]
        started = time.perf_counter()
        pipeline.generate(prompts, [config] * batch)
        return time.perf_counter() - started

    runs = []
    for batch in batches:
        for repeat in range(repeats + 1):  # The first meets shapes that the plugin has not prepared yet.
            first = seconds(batch, 1)
            rest = seconds(batch, new) - first
            if repeat:
                rates = {"prefill": batch * prompt / first, "decode": batch * (new - 1) / rest}
                runs.append({"batch": batch, "compute_share": 1.0, **rates})
    sys.stdout.write(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
