"""Low-rank additions to the network's products: y + (x · Aᵀ) · B, for each token with its own sequence's A and B.

Hu et al. 2021 (arXiv:2106.09685). The adapters of a step lie side by side, so that one product serves all of them, and
what a token gets from an adapter that is not its own is replaced by zero in between (Sheng et al. 2023,
arXiv:2311.03285, has kernels for it; with the few adapters of a step a mask is as good). It is replaced and not
multiplied, so that no adapter can spoil another one's tokens with infinities.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset16 as op

from shardyard.runtime.adapters.pool import AdapterPool
from shardyard.runtime.layers.constants import integer, number

__all__ = ["Adapters"]

#: Products that are one array in the network and several sites for adapters: side by side in this order.
_FUSED = {"attention.qkv": ("attention.q", "attention.k", "attention.v")}


class Adapters:
    """Makes the additions. ``parameters`` collects the network's inputs that it asks for."""

    def __init__(self, pool: AdapterPool) -> None:
        self.parameters: list[Any] = []
        self._widths = {site.name: site.widths for site in pool.sites}
        self._rows = self._parameter("lora_rows", [-1], ov.Type.i32)
        row_places = self._parameter("lora_row_places", [-1], ov.Type.i32)
        token_places = self._parameter("lora_token_places", [-1], ov.Type.i32)
        self._own = op.equal(op.unsqueeze(token_places, integer(1)), op.unsqueeze(row_places, integer(0)))

    def add(self, y: Any, x: Any, name: str) -> Any:
        """Return the product ``y`` of ``x``, [tokens, outputs], with what the adapters add to it."""
        layer, _, part = name.removeprefix("transformer.layers.").partition(".")
        sites = [f"transformer.layers.{layer}.{each}" for each in _FUSED.get(part, (part,))]
        if not all(site in self._widths for site in sites):
            return y
        additions = [self._addition(x, site) for site in sites]
        return op.add(y, additions[0] if len(additions) == 1 else op.concat(additions, 1))

    def _addition(self, x: Any, site: str) -> Any:
        down, up = (
            op.gather(self._parameter(f"lora_{side}.{site}", [-1, width], ov.Type.f32), self._rows, integer(0))
            for side, width in zip("ab", self._widths[site], strict=True)
        )
        narrow = op.select(self._own, op.matmul(x, down, False, True), number(0))
        return op.matmul(narrow, up, False, False)

    def _parameter(self, name: str, shape: list[int], kind: Any) -> Any:
        parameter = op.parameter(ov.PartialShape(shape), kind, name)
        parameter.output(0).set_names({name})
        self.parameters.append(parameter)
        return parameter
