"""Makes adapters with PEFT, and what PEFT computes with them in float32, for the seeded tiny checkpoints.

    python tests/runtime/adapters/make_adapters.py --maker .venv/bin/python

Needs torch, transformers and peft, which the project itself does not; ``--maker`` is an interpreter with the project's
own dependencies, which makes the checkpoints. Per adapter it writes a folder as PEFT saves it, with golden.npz: the
prompt, and the logits of its last position.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent.parent.parent / "examples" / "make_checkpoint.py"
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: By name: the checkpoint's family, PEFT's settings, the type that the adapter is saved in.
ADAPTERS: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "llama-all": (
        "llama",
        {
            "r": 2,
            "lora_alpha": 6,
            "target_modules": EVERY,
            "rank_pattern": {"q_proj": 4, r"layers\.[01]\.mlp\.up_proj": 1},
            "alpha_pattern": {"^model.layers.3.self_attn.[qk]_proj": 9, "^model.layers.2.mlp": 50, "down_proj": 3},
        },
        torch.float16,
    ),
    "qwen2-some": (
        "qwen2",
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
        torch.bfloat16,
    ),
}


def make(name: str, maker: str) -> None:
    """Make one adapter and its golden logits."""
    family, settings, dtype = ADAPTERS[name]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([maker, CHECKPOINTS, "--family", family, "--out", folder], check=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(len(name))
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for key, value in adapted.named_parameters():
        if "lora_" in key:
            value.data = (value.data * 0.3).to(dtype).to(torch.float32)
    prompt = np.random.default_rng(0).integers(6, 515, 40)
    with torch.no_grad():
        logits = adapted.eval()(torch.tensor(prompt[None])).logits[0, -1].numpy()
    adapted.to(dtype).save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()
    path = HERE / name / "adapter_config.json"
    config_json = json.loads(path.read_text())
    config_json["base_model_name_or_path"] = family  # PEFT has the temporary folder there.
    path.write_text(json.dumps(config_json, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(HERE / name / "golden.npz", prompt=prompt, logits=logits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maker", required=True, help="interpreter that makes the checkpoints")
    arguments = parser.parse_args()
    for each in ADAPTERS:
        make(each, arguments.maker)
