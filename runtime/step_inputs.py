"""What a rank's network is given of a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.runtime.context import ContextShare
from shardyard.runtime.network import NetworkSpec
from shardyard.runtime.step_plan import StepPlan

__all__ = ["keeps_own_caches", "step_inputs"]


def keeps_own_caches(spec: NetworkSpec, *, split: bool) -> bool:
    """Whether the network's layers keep their caches to themselves; ``split``: over context-parallel ranks."""
    attention = spec.attention
    # The plugin's attention has no soft cap, and loses ALiBi's penalties where a window leaves keys out.
    windowed_alibi = attention.alibi is not None and any(layer.window for layer in spec.layers)
    return split or attention.softcap is not None or windowed_alibi


def step_inputs(spec: NetworkSpec, plan: StepPlan, share: ContextShare | None) -> dict[str, Any]:
    """Return the inputs by name, all but hidden states; ``share``: what of the step this rank runs, if not all."""
    inputs = {
        "past_lens": plan.past,
        "subsequence_begins": plan.begins,
        "block_indices": plan.blocks,
        "block_indices_begins": plan.block_begins,
        "max_context_len": np.array(plan.longest, np.int32),
        "position_ids": share.positions if share else plan.positions,
    }
    if spec.first:
        inputs["input_ids"] = share.plan.tokens if share else plan.tokens
    if spec.last:
        inputs["sample_idx"] = share.samples if share else plan.samples
        if share:
            inputs["sample_mine"] = share.mine  # type: ignore[assignment]
    if keeps_own_caches(spec, split=share is not None):
        inputs["block_copies"] = plan.copies
    return inputs
