"""Writes a checkpoint of Llama's architecture as llama.cpp's GGUF file, version 3, matrices in Q8_0 or BF16.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. There is no tokenizer in it: the benchmark sends and
takes token ids.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardyard.builder.source.safetensors_file import SafetensorsFile

__all__ = ["Kind", "write_gguf"]

Kind = Literal["q8_0", "bf16"]
_ALIGNMENT = 32
_U32, _F32, _STRING = 4, 6, 8
#: ggml's numbers of types.
_F32_TENSOR = 0
_TYPES: dict[Kind, int] = {"q8_0": 8, "bf16": 30}
#: Numbers that share a scale in Q8_0.
_GROUP = 32
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(checkpoint: Path, path: Path, kind: Kind) -> None:
    """Write the checkpoint in folder ``checkpoint``, one file of bfloat16, as ``path``."""
    config = json.loads((checkpoint / "config.json").read_text())
    source = SafetensorsFile(checkpoint / "model.safetensors")
    tensors = {_name(name): _permuted(_name(name), source.array(name), config) for name in source.entries}
    fields = b"".join(_field(key, value) for key, value in _fields(config).items())
    infos, end = b"", 0
    for name, array in tensors.items():
        infos += _text(name) + struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}Q", *reversed(array.shape))
        number, size = (_F32_TENSOR, array.size * 4) if array.ndim == 1 else (_TYPES[kind], _size(array, kind))
        infos += struct.pack("<IQ", number, end)
        end += size + -size % _ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(_fields(config))) + fields + infos
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % _ALIGNMENT))
        for array in tensors.values():
            data = array.astype(np.float32).tobytes() if array.ndim == 1 else _data(array, kind)
            file.write(data + bytes(-len(data) % _ALIGNMENT))


def _name(name: str) -> str:
    base = name.removesuffix(".weight")
    if base in _OUTER:
        return f"{_OUTER[base]}.weight"
    layer, _, part = base.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _permuted(name: str, array: NDArray[Any], config: Mapping[str, Any]) -> NDArray[Any]:
    """Pair the rows that rotate together: Hugging Face has them half a head apart, llama.cpp side by side."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return array
    halves = array.reshape(config[heads], 2, -1, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _fields(config: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.rope.dimension_count": config["head_dim"],
        "llama.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "none",
    }


def _field(key: str, value: str | int | float) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    kind, code = (_F32, "f") if isinstance(value, float) else (_U32, "I")
    return _text(key) + struct.pack(f"<I{code}", kind, value)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _size(array: NDArray[Any], kind: Kind) -> int:
    return array.size * 2 if kind == "bf16" else array.size // _GROUP * (_GROUP + 2)


def _data(array: NDArray[Any], kind: Kind) -> bytes:
    return array.tobytes() if kind == "bf16" else b"".join(_groups(array))


def _groups(array: NDArray[Any]) -> Iterator[bytes]:
    """Yield the rows in Q8_0: per 32 numbers a float16 scale and as many int8."""
    for rows in np.array_split(array, max(1, len(array) // 4096)):
        values = rows.astype(np.float32).reshape(-1, _GROUP)
        scales = np.abs(values).max(1, keepdims=True) / 127
        numbers = np.rint(values / np.where(scales > 0, scales, 1)).astype(np.int8)
        yield np.concatenate([scales.astype(np.float16).view(np.int8), numbers], axis=1).tobytes()
