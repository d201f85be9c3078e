"""All ranks of several engines, one after the other: logits of prompts, by who multiplies, float32, into .npz files.

The plugin multiplies in float32 with what the packed weights stand for; the others are levels of the engine's own.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from shardyard.runtime.engine_file import open_engine
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

for job in json.loads(Path(sys.argv[1]).read_text()):
    engine, logits = Path(job["engine"]), {}
    mapping = json.loads((engine / "config.json").read_text())["pretrained_config"]["mapping"]
    world = World(mapping["tp_size"], mapping["pp_size"])
    spec, arrays = open_engine(engine / f"rank{world.file}.engine")
    for level in (None, *job["levels"]):
        model = RankModel(spec, arrays, world, replace(RankSettings.exact(), products=level))
        for index, tokens in enumerate(job["prompts"]):
            shares = world.comm.gather(model.logits(tokens))
            if world.leader:
                logits[f"{level or 'plugin'}_{index}"] = np.concatenate([shares[r] for r in world.results_from], axis=1)
    if world.leader:
        np.savez(job["out"], **logits)
    world.flush()
if world.leader:
    print("{}")
