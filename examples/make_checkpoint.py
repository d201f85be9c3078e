"""Makes a small checkpoint in real Hugging Face form from a seed: weights, tokenizer, chat template, configs.

    python examples/make_checkpoint.py --out examples/checkpoints/tiny-llama

The weights are random, so the model writes noise; everything around them is what a downloaded checkpoint has. The
same arguments give the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# With PYTHONSAFEPATH, as make sets it, a script's own folder is not on the import path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from sample_families import FAMILIES, SHAPES, Sample

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SPECIAL = ["<|begin|>", "<|end|>", "<|turn_end|>", "<|user|>", "<|assistant|>", "<|system|>"]
BEGIN, END, TURN_END = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|turn_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
#: What the tokenizer is trained on.
TEXT = """\
A river begins as rain on a hill. It gathers in small streams, finds the low ground, and grows as others join it.
Every mill on its bank takes a part of the water and gives it back further down, and the sea sees none of this.
The baker opens before the sun is up. Bread for the school, rolls for the station, one cake for a wedding at noon.
When the bell rings twelve, the shelves are empty and the oven is cold; tomorrow it begins again.
A lighthouse does not chase ships. It stands where the rocks are, turns at an even pace, and can be trusted.
Count the stones in a wall and you count the afternoons of someone patient. Zero, one, two, three, five, eight.
Once upon a time there was a clock that asked what time it was. Nobody knew, so it kept on counting.
Le train part à huit heures; der Zug fährt um neun; el tren sale a las diez. ¿Quién llega primero?
東京は今、何時ですか。
"""


def config(sample: Sample, shape: str, dtype: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json."""
    sizes = {**SHAPES[shape], "max_position_embeddings": 2048, **(sample.tiny if shape == "tiny" else {})}
    sizes.setdefault("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    named = {sample.keys.get(key, key): size for key, size in sizes.items()}
    return {
        **sample.config,
        **{key: size for key, size in named.items() if key},
        "bos_token_id": BEGIN,
        "eos_token_id": [END, TURN_END],
        "torch_dtype": dtype,
        **overrides,
    }


def dimensions(sample: Sample, cfg: dict[str, Any]) -> dict[str, int]:
    """Return the sizes that the lines of sample_tensors.py name."""

    def size(key: str, default: int = 0) -> int:
        return int(cfg.get(sample.keys.get(key, key) or key, default))

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    head = size("head_dim", hidden // heads)
    query = heads * head
    # Falcon's older decoder has one key/value head and no key that says so.
    shared = cfg.get("multi_query") and not cfg["new_decoder_architecture"]
    kv = head if shared else size("num_key_value_heads", heads) * head
    return {
        "one": 1,
        "layers": size("num_hidden_layers"),
        "vocab": size("vocab_size"),
        "positions": size("max_position_embeddings"),
        "learned": size("max_position_embeddings") + 2,
        "hidden": hidden,
        "inner": size("intermediate_size"),
        "head": head,
        "q": query,
        "kv": kv,
        "qkv": query + 2 * kv,
        "experts": size("num_experts", size("num_local_experts")),
        "moe_inner": size("moe_intermediate_size"),
        "shared_inner": size("shared_expert_intermediate_size"),
    }


def flags(cfg: dict[str, Any], layer: int) -> dict[str, bool]:
    """Return the flags that the lines of sample_tensors.py name, for one layer."""
    sparse = bool(cfg.get("num_experts")) and layer not in cfg["mlp_only_layers"]
    sparse = sparse and (layer + 1) % cfg["decoder_sparse_step"] == 0
    newer = bool(cfg.get("new_decoder_architecture"))
    bias = bool(cfg.get("attention_bias"))
    return {
        "untied": not cfg["tie_word_embeddings"],
        "attention_bias": bias,
        "qkv_bias": bias or cfg["model_type"] in ("qwen2", "qwen2_moe"),
        "mlp_bias": bool(cfg.get("mlp_bias")),
        "bias": bool(cfg.get("bias")),
        "sparse": sparse,
        "dense": not sparse,
        "two_norms": newer and cfg.get("num_ln_in_parallel_attn", 2) == 2,
        "one_norm": not newer or cfg.get("num_ln_in_parallel_attn") == 1,
        "sequential": not newer and cfg.get("parallel_attn") is False,
    }


def tensor_shapes(sample: Sample, cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name and shape, in the order of the model."""
    known = dimensions(sample, cfg)
    lines = [line.split() for line in sample.tensors.splitlines() if line]
    inner = [line for line in lines if "{l}" in line[0]]
    first, last = lines[: lines.index(inner[0])], [line for line in lines[lines.index(inner[0]) :] if line not in inner]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, part in [(0, first), *((layer, inner) for layer in range(known["layers"])), (0, last)]:
        for name, *rest in part:
            if all(flags(cfg, layer)[symbol[1:]] for symbol in rest if symbol.startswith("?")):
                symbols = [symbol.partition("*") for symbol in rest if not symbol.startswith("?")]
                shape = tuple(known[key] * int(times or 1) for key, _, times in symbols)
                for expert in range(known["experts"] if "{e}" in name else 1):
                    shapes[name.format(l=layer, e=expert)] = shape
    return shapes


def values(seed: int, name: str, shape: tuple[int, ...], sample: Sample, cfg: dict[str, Any]) -> np.ndarray:
    """Return one tensor. It depends on the seed and its name alone, so shapes and order of others do not matter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # [-1, 1)
    if name.endswith("bias"):
        uniform *= np.float32(0.25)
    elif len(shape) == 1:
        uniform = (0 if sample.zero_centred else 1) + np.float32(0.1) * uniform
    elif name == sample.embedding or name.endswith(("wpe.weight", "embed_positions.weight")):
        if cfg["tie_word_embeddings"]:
            # A small embedding, or a tied head finds the last token again and repeats it for ever.
            uniform *= np.float32(0.05)
    else:
        # Uniform on [-1, 1) has a variance of 1/3: keep each product's variance near 1.
        uniform *= np.float32(math.sqrt(3.0 / shape[0 if sample.transposed and name != sample.head else -1]))
    tensor = uniform.reshape(shape)
    if name in (sample.head, sample.embedding):
        # Special tokens and single bytes score low, so that the noise is mostly printable.
        tensor[: len(SPECIAL) + 256] *= np.float32(0.25)
    return tensor.astype(DTYPES[cfg["torch_dtype"]])


def write_weights(out: Path, sample: Sample, cfg: dict[str, Any], seed: int, shards: int) -> None:
    """Write model.safetensors, or ``shards`` files with an index."""
    shapes = list(tensor_shapes(sample, cfg).items())
    per_file = -(-len(shapes) // shards)
    weight_map, total = {}, 0
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        part = shapes[index * per_file : (index + 1) * per_file]
        tensors = {key: values(seed, key, shape, sample, cfg) for key, shape in part}
        save_file(tensors, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if shards > 1:
        dump(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer(out: Path, cfg: dict[str, Any]) -> None:
    """Train a byte-level BPE tokenizer on TEXT and write it with its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(cfg["vocab_size"], 512),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BEGIN]} $A", special_tokens=[(SPECIAL[BEGIN], BEGIN)]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BEGIN],
        "eos_token": SPECIAL[END],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": cfg.get("max_position_embeddings", cfg.get("n_positions")),
    }
    dump(out / "tokenizer_config.json", described)


def dump(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make(out: Path, family: str, shape: str, dtype: str, seed: int, shards: int, overrides: dict[str, Any]) -> None:
    """Write the whole checkpoint, config.json last."""
    out.mkdir(parents=True, exist_ok=True)
    sample = FAMILIES[family]
    cfg = config(sample, shape, dtype, overrides)
    write_weights(out, sample, cfg, seed, shards)
    write_tokenizer(out, cfg)
    dump(out / "generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": [END, TURN_END]})
    dump(out / "config.json", cfg)


def main() -> None:
    """Read the arguments and write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a key of config.json")
    args = parser.parse_args()
    overrides = {key: json.loads(value) for key, _, value in (item.partition("=") for item in args.set)}
    make(args.out, args.family, args.shape, args.dtype, args.seed, args.shards, overrides)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
