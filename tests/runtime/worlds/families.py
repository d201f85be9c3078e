"""All ranks of several unified checkpoints, one after the other: logits of prompts, float32, into .npz files."""

import json
import sys
from pathlib import Path

import numpy as np

from shardyard.builder.targets.cpu import rank_arrays, read_config
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

for job in json.loads(Path(sys.argv[1]).read_text()):
    checkpoint = Path(job["checkpoint"])
    mapping = read_config(checkpoint)["mapping"]
    world = World(mapping["tp_size"], mapping["pp_size"], mapping["cp_size"])
    spec, arrays = rank_arrays(checkpoint, world.file, weights="float32")
    model = RankModel(spec, arrays, world, RankSettings.exact())
    whole = []
    for tokens in job["prompts"]:
        shares = world.comm.gather(model.logits(tokens))
        if world.leader:
            whole.append(np.concatenate([shares[rank] for rank in world.results_from], axis=1))
    if world.leader:
        np.savez(checkpoint / "logits.npz", *whole)
    world.flush()
if world.leader:
    print("{}")
