"""Which layers of a model are of a kind: with experts, or with a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.builder.config.keys import ConfigKeys

__all__ = ["LayerKinds", "parse_moe_layers", "parse_sliding_layers", "parse_sliding_window"]


@dataclass(frozen=True)
class LayerKinds:
    """Every ``every``-th layer (0: none) from layer ``first`` on, but those in ``but``.

    A rule instead of a list, since a broken config.json may claim any number of layers.
    """

    every: int = 0
    first: int = 0
    but: frozenset[int] = frozenset()

    def holds(self, layer: int) -> bool:
        """Whether ``layer``, from 0, is of the kind."""
        return (
            bool(self.every)
            and layer >= self.first
            and (layer - self.first) % self.every == 0
            and layer not in self.but
        )

    def all(self, count: int) -> tuple[bool, ...]:
        """Return it for each of ``count`` layers."""
        return tuple(self.holds(layer) for layer in range(count))


def parse_moe_layers(keys: ConfigKeys, experts: int) -> LayerKinds:
    """Return the layers with experts: the last of every ``decoder_sparse_step``, but the ``mlp_only_layers``.

    Raises:
        CheckpointError: one of the two is not what it must be.
    """
    if not experts:
        return LayerKinds()
    step = keys.size("decoder_sparse_step", 1)
    return LayerKinds(step, step - 1, frozenset(keys.layers("mlp_only_layers")))


def parse_sliding_window(keys: ConfigKeys) -> int | None:
    """Return the sliding window in tokens; None: there is none, or 0, or it is not used, as in Qwen's files.

    Raises:
        CheckpointError: it is not a whole number.
    """
    reads = keys.family.reads
    unused = "sliding_window" not in reads or keys.absent("sliding_window")
    if "use_sliding_window" in reads:
        unused = unused or not keys.flag("use_sliding_window", False)
    return None if unused or keys.get("sliding_window") == 0 else keys.size("sliding_window")


def parse_sliding_layers(keys: ConfigKeys) -> LayerKinds:
    """Return the layers with a sliding window: every ``sliding_every``-th from ``sliding_first``, if there is a window.

    Raises:
        CheckpointError: ``layer_types`` names other layers.
    """
    kinds = LayerKinds()
    if parse_sliding_window(keys) is not None:
        kinds = LayerKinds(every=keys.size("sliding_every", 1), first=keys.count("sliding_first"))
    given = keys.get("layer_types")
    if isinstance(given, list):
        wanted = [f"{'sliding' if kinds.holds(layer) else 'full'}_attention" for layer in range(len(given))]
        if given != wanted:
            keys.wrong("layer_types", given, f"the family's order of layers, {wanted}")
    return kinds
