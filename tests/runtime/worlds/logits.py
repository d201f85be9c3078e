"""All ranks of a unified checkpoint: logits of one prompt; rank 0 writes them to a file and prints its settings."""

import json
import sys
from pathlib import Path

import numpy as np

from shardyard.builder.targets.cpu import rank_arrays, read_config
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.world import World

checkpoint, tokens, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
mapping = read_config(checkpoint)["mapping"]
world = World(mapping["tp_size"], mapping["pp_size"], mapping["cp_size"])
spec, arrays = rank_arrays(checkpoint, world.file, weights="float32")
model = RankModel(spec, arrays, world, RankSettings.exact())
mine = model.logits(tokens)
shares = world.comm.gather(mine)
if world.leader:
    np.save(out, np.concatenate([shares[rank] for rank in world.results_from], axis=1))
    print(json.dumps({"all_reduce": type(model.all_reduce).__name__}))
world.flush()
