"""Sites: the products that an adapter may change, what PEFT calls them, and what of them a rank has.

A column-parallel product's rank has some of B's rows, a row-parallel one's some of A's columns: its part of the change
is then a part of the sum that the all-reduce makes anyway (the product with B is linear).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardyard.runtime.network import NetworkSpec

__all__ = ["ADAPTED", "TARGETS", "Site", "adapted_widths", "find_sites"]

#: PEFT's name of a module within its layer → ours, of the product that it is.
TARGETS = {
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.o_proj": "attention.dense",
    "mlp.gate_proj": "mlp.fc",
    "mlp.up_proj": "mlp.gate",
    "mlp.down_proj": "mlp.proj",
}
#: Architectures whose modules have these names.
ADAPTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM")


@dataclass(frozen=True)
class Site:
    """One product of this rank: ``name`` in the network, ``module`` in PEFT's files.

    ``whole``: the product's inputs and outputs over all ranks. ``takes`` of the inputs and ``gives`` of the outputs are
    this rank's.
    """

    name: str
    module: str
    whole: tuple[int, int]
    takes: slice
    gives: slice

    @property
    def widths(self) -> tuple[int, int]:
        """Inputs and outputs of this rank."""
        return self.takes.stop - self.takes.start, self.gives.stop - self.gives.start


def adapted_widths(network: NetworkSpec, kv_heads: int) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs over all ranks of every target, by our names; ``kv_heads`` are the model's."""
    attention, hidden = network.attention, network.hidden
    heads, inner = attention.heads * attention.head_size * network.tp, network.mlp.inner * network.tp
    kv = kv_heads * attention.head_size
    widths = {"attention.q": (hidden, heads), "attention.k": (hidden, kv), "attention.v": (hidden, kv)}
    widths["attention.dense"] = heads, hidden
    return widths | {"mlp.fc": (hidden, inner), "mlp.gate": (hidden, inner), "mlp.proj": (inner, hidden)}


def find_sites(network: NetworkSpec, kv_heads: int, first_layer: int) -> list[Site]:
    """Return this rank's sites; ``first_layer`` is the number of its stage's first layer in the whole model."""
    widths = adapted_widths(network, kv_heads)
    return [
        Site(
            name=f"transformer.layers.{layer}.{ours}",
            module=f"model.layers.{first_layer + layer}.{theirs}",
            whole=widths[ours],
            takes=_part(widths[ours][0], network) if ours in _ROW_PARALLEL else slice(0, widths[ours][0]),
            gives=_GIVES[ours](widths[ours][1], network),
        )
        for layer in range(len(network.layers))
        for theirs, ours in TARGETS.items()
    ]


def _part(width: int, network: NetworkSpec) -> slice:
    each = width // network.tp
    return slice(network.tp_rank * each, (network.tp_rank + 1) * each)


def _all(width: int, network: NetworkSpec) -> slice:
    return slice(0, width)


def _kv_part(width: int, network: NetworkSpec) -> slice:
    """Ranks that outnumber the heads share them: each has one whole head, as the rank files have it."""
    each = network.attention.kv_heads * network.attention.head_size
    first = network.tp_rank * width // network.tp // each * each
    return slice(first, first + each)


_ROW_PARALLEL = ("attention.dense", "mlp.proj")
_GIVES: dict[str, Callable[[int, NetworkSpec], slice]] = {
    "attention.q": _part,
    "attention.k": _kv_part,
    "attention.v": _kv_part,
    "attention.dense": _all,
    "mlp.fc": _part,
    "mlp.gate": _part,
    "mlp.proj": _all,
}
