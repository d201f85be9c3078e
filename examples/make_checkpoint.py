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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

#: Shapes by name. Sizes are odd on purpose: a vocabulary that no tp divides, layers that pp=2 does not divide,
#: fewer key/value heads than tp=4 has ranks.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 515,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
}

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


def config(family: str, shape: str, dtype: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json."""
    sizes = SHAPES[shape]
    return {
        **FAMILIES[family],
        **sizes,
        "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "bos_token_id": BEGIN,
        "eos_token_id": [END, TURN_END],
        "torch_dtype": dtype,
        **overrides,
    }


def tensor_shapes(cfg: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name and shape, in the order of the model."""
    hidden, inner, head = cfg["hidden_size"], cfg["intermediate_size"], cfg["head_dim"]
    rows = {"q": cfg["num_attention_heads"] * head, "k": cfg["num_key_value_heads"] * head}
    rows["v"] = rows["k"]
    yield "model.embed_tokens.weight", (cfg["vocab_size"], hidden)
    for layer in range(cfg["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part, count in rows.items():
            yield f"{prefix}self_attn.{part}_proj.weight", (count, hidden)
            if cfg["model_type"] == "qwen2" or cfg.get("attention_bias"):
                yield f"{prefix}self_attn.{part}_proj.bias", (count,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, rows["q"])
        if cfg.get("attention_bias"):
            yield f"{prefix}self_attn.o_proj.bias", (hidden,)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not cfg["tie_word_embeddings"]:
        yield "lm_head.weight", (cfg["vocab_size"], hidden)


def values(seed: int, name: str, shape: tuple[int, ...], cfg: dict[str, Any]) -> np.ndarray:
    """Return one tensor. It depends on the seed and its name alone, so shapes and order of others do not matter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # [-1, 1)
    if name.endswith("norm.weight"):
        uniform = 1 + np.float32(0.1) * uniform
    elif name.endswith("bias"):
        uniform *= np.float32(0.25)
    elif "embed" not in name:
        # Uniform on [-1, 1) has a variance of 1/3: keep each product's variance near 1.
        uniform *= np.float32(math.sqrt(3.0 / shape[-1]))
    elif cfg["tie_word_embeddings"]:
        # A small embedding, or a tied head finds the last token again and repeats it for ever.
        uniform *= np.float32(0.05)
    tensor = uniform.reshape(shape)
    if name in ("lm_head.weight", "model.embed_tokens.weight"):
        # Special tokens and single bytes score low, so that the noise is mostly printable.
        tensor[: len(SPECIAL) + 256] *= np.float32(0.25)
    return tensor.astype(DTYPES[cfg["torch_dtype"]])


def write_weights(out: Path, cfg: dict[str, Any], seed: int, shards: int) -> None:
    """Write model.safetensors, or ``shards`` files with an index."""
    shapes = list(tensor_shapes(cfg))
    per_file = -(-len(shapes) // shards)
    weight_map, total = {}, 0
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        part = shapes[index * per_file : (index + 1) * per_file]
        tensors = {key: values(seed, key, shape, cfg) for key, shape in part}
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
        "model_max_length": cfg["max_position_embeddings"],
    }
    dump(out / "tokenizer_config.json", described)


def dump(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make(out: Path, family: str, shape: str, dtype: str, seed: int, shards: int, overrides: dict[str, Any]) -> None:
    """Write the whole checkpoint, config.json last."""
    out.mkdir(parents=True, exist_ok=True)
    cfg = config(family, shape, dtype, overrides)
    write_weights(out, cfg, seed, shards)
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
