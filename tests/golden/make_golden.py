"""Makes the golden values: what Hugging Face transformers computes in float32 for the seeded tiny checkpoints.

    python tests/golden/make_golden.py --maker .venv/bin/python

Needs torch and transformers, which the project itself does not; ``--maker`` is an interpreter with the project's own
dependencies, which makes the checkpoints. Per checkpoint it writes into logits/: NAME.json (prompts, greedy tokens and
text, the source files' hashes, versions) and NAME.npz (logits of the last positions, every layer's output at the last
token). It stops if a checkpoint lacks a tensor that transformers looks for, or has one that it does not know.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from transformers.models.falcon import modeling_falcon as falcon

HERE = Path(__file__).resolve().parent
OUT = HERE / "logits"
MAKER = HERE.parent.parent / "examples" / "make_checkpoint.py"
#: Options of examples/make_checkpoint.py by golden's name.
CHECKPOINTS: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-bias": {"attention_bias": True, "mlp_bias": True, "rope_scaling": None},
    "llama-linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 256},
    "llama-yarn": {
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256},
    },
    "qwen2": {},
    "qwen2-unused": {"sliding_window": 64, "max_window_layers": 1},
    "qwen2-sliding": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
    "mistral": {},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3-sliding": {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "phi3": {},
    "phi3-partial": {"partial_rotary_factor": 0.75, "sliding_window": 64, "tie_word_embeddings": True},
    "phi3-longrope": {
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.05, 1.1, 1.3, 1.6, 2.0, 2.7, 3.5],
            "long_factor": [1.0, 1.2, 1.8, 2.9, 4.4, 6.1, 7.3, 8.0],
        },
    },
    "gemma": {},
    "gemma2": {},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "falcon": {},
    "falcon-sequential": {"parallel_attn": False, "multi_query": False, "bias": True},
    "falcon-alibi": {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "falcon-alibi_six_heads": {"alibi": True, "num_attention_heads": 6, "hidden_size": 96},
    "falcon_new": {},
    "falcon_new-one_norm": {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    "opt": {},
}
PROMPTS = ["Once upon a time", "東京は今、何時ですか。¿Quién llega primero?"]
NEW_TOKENS = 16
#: A prompt of seeded ids, beyond every sliding window and every original_max_position_embeddings (256).
LONG = 320
#: Positions whose logits are kept, the last ones.
KEPT = 3


def main() -> None:
    """Write every family's golden values into logits/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maker", required=True, help="python with the project's dependencies")
    parser.add_argument("names", nargs="*", metavar="NAME", help="make these; all, if none is named")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names or CHECKPOINTS:
        changes = CHECKPOINTS[name]
        options = ["--family", name.partition("-")[0]]
        for key, value in changes.items():
            options += ["--set", f"{key}={json.dumps(value)}"]
        with tempfile.TemporaryDirectory() as folder, float32_alibi():
            subprocess.run([args.maker, str(MAKER), "--out", folder, *options], check=True, stdout=subprocess.DEVNULL)
            described, arrays = golden(Path(folder), options)
        text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
        # Lists of numbers on one line each.
        text = re.sub(r"\[[\d,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")
        np.savez_compressed(OUT / f"{name}.npz", **arrays)
        print(f"wrote {name}.json and {name}.npz")


@contextmanager
def float32_alibi() -> Iterator[None]:
    """Keep Falcon's ALiBi in float32: its slopes are bfloat16 there whatever the model's type, so far tokens tie."""
    own = falcon.build_alibi_tensor

    def exact(mask: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float):
            return own(mask, heads, dtype)

    with mock.patch.object(falcon, "build_alibi_tensor", exact):
        yield


def golden(folder: Path, options: list[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of NAME.json and of NAME.npz for the checkpoint in ``folder``."""
    # Falcon's eager attention adds ALiBi's penalty twice, in the mask too.
    attention = "sdpa" if any("alibi" in option for option in options) else "eager"
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    if any(loaded.values()):
        raise SystemExit(f"the checkpoint is not what transformers expects: {loaded}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.eval()
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        tokens = greedy(model, ids)
        cases.append(
            {"prompt": prompt, "ids": ids, "tokens": tokens, "text": tokenizer.decode(tokens, skip_special_tokens=True)}
        )
    vocabulary = len(tokenizer)
    long_ids = np.random.Generator(np.random.PCG64(0)).integers(6, vocabulary, LONG).tolist()
    arrays = {f"logits_{index}": logits(model, case["ids"] + case["tokens"]) for index, case in enumerate(cases)}
    arrays |= {"logits_long": logits(model, long_ids), "layers_long": layers(model, long_ids)}
    described = {
        "made_by": "tests/golden/make_golden.py",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "options": options,
        "seed": 0,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
        "end_ids": model.generation_config.eos_token_id,
        "max_new_tokens": NEW_TOKENS,
        "cases": cases,
        "long": long_ids,
    }
    return described, arrays


def greedy(model: Any, ids: list[int]) -> list[int]:
    """Return the tokens after ``ids``, without the end id that ends them."""
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NEW_TOKENS)
    tokens = out[0, len(ids) :].tolist()
    end_ids = model.generation_config.eos_token_id
    return tokens[:-1] if tokens and tokens[-1] in end_ids else tokens


def logits(model: Any, ids: list[int]) -> np.ndarray:
    """Return the logits of the last positions, float32 [KEPT, vocab]."""
    with torch.no_grad():
        out = model(torch.tensor([ids])).logits
    return out[0, -KEPT:].numpy()


def layers(model: Any, ids: list[int]) -> np.ndarray:
    """Return every decoder layer's output at the last token, float32 [layers, hidden]."""
    found: list[np.ndarray] = []

    def keep(module: Any, given: Any, out: Any) -> None:
        found.append((out[0] if isinstance(out, tuple) else out)[0, -1].numpy())

    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    decoder = next(module for module in lists if len(module) == model.config.num_hidden_layers)
    hooks = [layer.register_forward_hook(keep) for layer in decoder]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return np.stack(found)


if __name__ == "__main__":
    main()
