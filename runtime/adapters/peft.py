"""An adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors.

PEFT adds ``scale · B · A`` to a weight: A is [rank, inputs], B [outputs, rank], scale = lora_alpha / rank, or
lora_alpha / √rank with ``use_rslora`` (Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardyard.errors import RequestError, ShardyardError
from shardyard.runtime.adapters.pool import Share
from shardyard.runtime.adapters.sites import TARGETS, Site
from shardyard.runtime.engine_file import map_arrays

__all__ = ["AdaptedModel", "PeftAdapter", "read_peft"]

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_MODULE = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<target>.+)")
#: Settings of PEFT and the values with which an adapter is the sum above; null, false and empty are fine with all.
_FINE: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The other ways to begin change the base model's weights too.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
    "use_rslora": (True,),
}
#: Further settings that must be unset: they change the sum, or more than linear layers.
_UNSET = re.compile(
    "fan_in_fan_out|lora_bias|modules_to_save|layer_replication|target_parameters|trainable_token_indices"
    "|alora_invocation_tokens|use_.*|(?!loftq|eva|corda|lora_ga|megatron).*_config"
)


@dataclass(frozen=True)
class AdaptedModel:
    """What an adapter must fit: layers, each target's inputs and outputs by our names, the engine's largest rank."""

    layers: int
    widths: Mapping[str, tuple[int, int]]
    max_rank: int


@dataclass(frozen=True)
class _Change:
    a: NDArray[Any]
    b: NDArray[Any]
    scale: float


class PeftAdapter:
    """An adapter whose file is mapped: ``changes`` by the names of PEFT's modules."""

    def __init__(self, changes: Mapping[str, _Change]) -> None:
        self._changes = changes

    def check(self, model: AdaptedModel) -> None:
        """Check that the adapter is one of ``model``.

        Raises:
            RequestError: it changes something that cannot be changed, its rank is too large, or its shapes are others.
        """
        for module, change in self._changes.items():
            known = _MODULE.fullmatch(module)
            if known is None or known["target"] not in TARGETS:
                raise RequestError(
                    f"it changes {module}",
                    why=f"the engine adapts {', '.join(name.split('.')[1] for name in TARGETS)}",
                )
            if int(known["layer"]) >= model.layers:
                raise RequestError(f"it changes {module}", why=f"the model has {model.layers} layers")
            _check_shapes(module, change, *model.widths[TARGETS[known["target"]]], model.max_rank)

    def share(self, sites: Iterable[Site]) -> Share:
        """Return a rank's part, read from the disk now.

        Raises:
            RequestError: there are numbers that are not finite.
        """
        parts = {}
        for site in sites:
            change = self._changes.get(site.module)
            if change:
                a = change.a[:, site.takes].astype(np.float32)
                b = change.b[site.gives].T.astype(np.float32) * np.float32(change.scale)
                if not (np.isfinite(a).all() and np.isfinite(b).all()):
                    raise RequestError(f"{site.module} has numbers that are not finite")
                parts[site.name] = a, b
        return parts


def read_peft(folder: Path) -> PeftAdapter:
    """Open an adapter's folder.

    Raises:
        RequestError: it cannot be read, or it is no adapter of the kind that the engine has.
    """
    config = _read_config(folder / "adapter_config.json")
    try:
        _, arrays = map_arrays(folder / "adapter_model.safetensors")
    except ShardyardError as error:
        raise RequestError(f"{folder / 'adapter_model.safetensors'} cannot be read", why=error.why) from None
    sides: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        found = _TENSOR.fullmatch(name)
        if found is None or array.ndim != 2:
            raise RequestError(f"it holds {name} {array.shape}", why="lora_A and lora_B of linear layers are known")
        sides.setdefault(found["module"], {})[found["side"]] = array
    lonely = next((module for module, pair in sides.items() if set(pair) != {"A", "B"}), None)
    if lonely or not sides:
        raise RequestError(f"{lonely or folder} has not both lora_A and lora_B")
    scales = {module: _scale(config, module, len(pair["A"])) for module, pair in sides.items()}
    return PeftAdapter({module: _Change(pair["A"], pair["B"], scales[module]) for module, pair in sides.items()})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["lora_alpha"], int | float):
            raise ValueError("lora_alpha is not a number")
        patterns = config.get("alpha_pattern") or {}
        config["alpha_pattern"] = {re.compile(rf"(.*\.)?({key})"): float(value) for key, value in patterns.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise RequestError(f"{path} cannot be used", why=f"{type(error).__name__}: {error}") from None
    for key, value in config.items():
        fine = _FINE.get(key, () if _UNSET.fullmatch(key) else (value,))
        if value and value not in fine:
            known = " or ".join(map(repr, fine)) or "unset"
            raise RequestError(f"its {key} is {value!r}", why=f"the engine knows it {known}")
    return dict(config)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what B · A is multiplied by; of several patterns that match, PEFT takes the first."""
    own = (alpha for pattern, alpha in config["alpha_pattern"].items() if pattern.fullmatch(module))
    alpha = next(own, float(config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else max(rank, 1))


def _check_shapes(module: str, change: _Change, inputs: int, outputs: int, max_rank: int) -> None:
    rank = len(change.a)
    if not 1 <= rank <= max_rank:
        raise RequestError(
            f"{module} has rank {rank}",
            why=f"the engine was built for ranks 1 to {max_rank}",
            fix="build it with a larger engine.lora.max_rank",
        )
    if change.a.shape[1] != inputs or change.b.shape != (outputs, rank):
        raise RequestError(
            f"{module} has lora_A {list(change.a.shape)} and lora_B {list(change.b.shape)}",
            why=f"the model's is [{outputs}, {inputs}]: this is another model's adapter",
        )
