"""An adapter that comes with a request, in TensorRT-LLM's tensors, as a folder like any other.

``lora_config`` [products, 3] names a module, a layer and a rank; the same row of ``lora_weights`` holds A, [rank,
inputs], and then B, [outputs, rank], multiplied by the scale already; the rest of the row is padding.

Source: TensorRT-LLM's documentation, advanced/lora, "LoRA tensor format details".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shardyard.errors import RequestError
from shardyard.runtime.adapters.peft import AdaptedModel
from shardyard.runtime.adapters.sites import TARGETS

__all__ = ["save_sent_adapter"]

#: TensorRT-LLM's numbers of modules; its mlp_h_to_4h is the branch with the activation.
_MODULES = {
    1: "self_attn.q_proj",
    2: "self_attn.k_proj",
    3: "self_attn.v_proj",
    4: "self_attn.o_proj",
    5: "mlp.gate_proj",
    6: "mlp.down_proj",
    7: "mlp.up_proj",
}
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def save_sent_adapter(folder: Path, weights: NDArray[Any], config: NDArray[Any], model: AdaptedModel) -> None:
    """Write ``lora_weights`` [products, width] and ``lora_config`` [products, 3] as PEFT would, into a new folder.

    Raises:
        RequestError: the two do not fit each other or the model.
    """
    if weights.ndim != 2 or config.shape != (len(weights), 3) or not len(weights):
        raise RequestError(
            f"lora_weights {list(weights.shape)} and lora_config {list(config.shape)} do not fit each other",
            why="they have a row for each product, and lora_config has 3 columns: module, layer, rank",
        )
    arrays: dict[str, NDArray[Any]] = {}
    for row, (module, layer, rank) in zip(weights, config.tolist(), strict=True):
        if module not in _MODULES:
            raise RequestError(f"lora_config names module {module}", why=f"known: {', '.join(map(str, _MODULES))}")
        inputs, outputs = model.widths[TARGETS[_MODULES[module]]]
        if rank < 1 or rank * (inputs + outputs) > len(row):
            raise RequestError(
                f"lora_weights has rows of {len(row)}, lora_config says rank {rank}",
                why=f"{_MODULES[module]} takes {inputs + outputs} numbers per rank",
            )
        name = f"{_PREFIX}model.layers.{layer}.{_MODULES[module]}"
        arrays[f"{name}{_A}"] = row[: rank * inputs].reshape(rank, inputs)
        arrays[f"{name}{_B}"] = row[rank * inputs : rank * (inputs + outputs)].reshape(outputs, rank)
    folder.mkdir(parents=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "adapter_model.safetensors"
    )
    # B has the scale in it: alpha is the rank, product by product.
    ranks = {name[len(_PREFIX) : -len(_A)]: len(array) for name, array in arrays.items() if name.endswith(_A)}
    settings = {"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": ranks}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
