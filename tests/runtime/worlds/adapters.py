"""All ranks of a unified checkpoint: logits of prompts with their adapters, in one step; rank 0 writes them to a file.

Arguments: the checkpoint, the adapters' folder, [[prompt, adapter or null], …] as JSON, the file, the model's kv heads.
"""

import json
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np

from shardyard.builder.targets.cpu import rank_arrays, read_config
from shardyard.runtime.adapters.peft import read_peft
from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.adapters.sites import find_sites
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.step_plan import StepPlan
from shardyard.runtime.world import World

BLOCK = 32
checkpoint, folder, out = (Path(sys.argv[i]) for i in (1, 2, 4))
prompts = [prompt for prompt, _ in json.loads(sys.argv[3])]
ids = [id for _, id in json.loads(sys.argv[3])]
mapping = read_config(checkpoint)["mapping"]
world = World(mapping["tp_size"], mapping["pp_size"])
spec, arrays = rank_arrays(checkpoint, world.rank, weights="float32")
layers = world.gather(len(spec.layers))[world.tp_rank :: world.tp]
pool = AdapterPool(find_sites(spec, int(sys.argv[5]), sum(layers[: world.stage])), 4, 8)
places = {id: place for place, id in enumerate(sorted({id for id in ids if id is not None}), start=1)}
for id, place in places.items():
    pool.write(place, read_peft(folder / str(id)).share(pool.sites))
model = RankModel(spec, arrays, world, RankSettings.exact(), adapters=pool)
begins = list(accumulate(map(len, prompts), initial=0))
blocks = list(accumulate((-(-len(prompt) // BLOCK) for prompt in prompts), initial=0))
every = range(begins[-1])
lists = ([token for prompt in prompts for token in prompt], [0] * len(prompts), begins, range(blocks[-1]), blocks)
plan = StepPlan(*(np.array(x, np.int32) for x in (*lists, every, every, [places.get(id, -1) for id in ids])))
mine = model.run(plan)
shares = world.comm.gather(None if mine is None else mine.copy()) if world.comm else [mine]
if world.leader:
    np.save(out, np.concatenate([share for share in shares if share is not None], axis=1))
    print(json.dumps({"places": places}))
world.flush()
