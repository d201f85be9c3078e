"""Makes the golden beams: what Hugging Face transformers' beam search finds in float32 for seeded tiny checkpoints.

    python tests/golden/make_beams.py --maker .venv/bin/python

Needs torch and transformers, as make_golden.py does. Writes beams.json: per checkpoint the searches, each with its
options and, best first, every beam's tokens (an end id included) and score.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
MAKER = HERE.parent.parent / "examples" / "make_checkpoint.py"
FAMILIES = ("llama", "gpt2")
#: Of seeded ids, as long as fits into a block of the cache, fills it, takes several.
PROMPTS = [np.random.Generator(np.random.PCG64(length)).integers(6, 515, length).tolist() for length in (5, 32, 75)]
NEW_TOKENS = 12
WIDTHS, PENALTIES, STOPPING = (2, 4), (0.0, 1.0, 2.0), (True, False)


def main() -> None:
    """Write beams.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maker", required=True, help="python with the project's dependencies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made: dict[str, Any] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            command = [args.maker, str(MAKER), "--out", folder, "--family", family]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            made[family] = searches(model.eval())
    content = {
        "made_by": "tests/golden/make_beams.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "prompts": PROMPTS,
        "families": made,
    }
    text = json.dumps(content, indent=0) + "\n"
    # Prompts, options and beams on one line each.
    text = re.sub(r"[\[{][^\[\]{}]+(\[[^\[\]]+\],[^\[\]{}]+)?[\]}]", lambda found: " ".join(found[0].split()), text)
    (HERE / "beams.json").write_text(text, encoding="utf-8")


def searches(model: Any) -> list[dict[str, Any]]:
    """Return all searches of a model: without end ids, and with some that beams do reach."""
    found = []
    for prompt in PROMPTS:
        plain = [search(model, prompt, {"beam_width": width}, ()) for width in WIDTHS]
        beams = plain[-1]["beams"]
        ends = sorted({beams[0]["tokens"][5], beams[1]["tokens"][8], beams[3]["tokens"][3]})
        found += plain
        for width, penalty, stopping in product(WIDTHS, PENALTIES, STOPPING):
            options = {"beam_width": width, "length_penalty": penalty, "early_stopping": stopping}
            found.append(search(model, prompt, options, ends))
        found.append(search(model, prompt, {"beam_width": 4, "length_penalty": 1.0}, ends, min_tokens=6))
    return found


def search(model: Any, prompt: list[int], options: dict[str, Any], ends: Any, min_tokens: int = 0) -> dict[str, Any]:
    """Return one search: what was asked and the beams that were found."""
    model.generation_config.eos_token_id = None
    given = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            num_beams=options["beam_width"],
            num_return_sequences=options["beam_width"],
            length_penalty=options.get("length_penalty", 0.0),
            early_stopping=options.get("early_stopping", True),
            eos_token_id=list(ends) or None,
            min_new_tokens=min_tokens or None,
            pad_token_id=0,
            max_new_tokens=NEW_TOKENS,
            output_scores=True,
            return_dict_in_generate=True,
        )
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    beams = [
        {"tokens": sequence[len(prompt) : len(prompt) + length].tolist(), "score": round(score, 5)}
        for sequence, length, score in zip(out.sequences, lengths, out.sequences_scores.tolist(), strict=True)
    ]
    return {
        "prompt": PROMPTS.index(prompt),
        "sampling": options,
        "end_ids": list(ends),
        "min_tokens": min_tokens,
        "beams": beams,
    }


if __name__ == "__main__":
    main()
