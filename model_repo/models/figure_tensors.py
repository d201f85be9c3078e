"""How an answer was made, as TensorRT-LLM's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.runtime.request import Figures

__all__ = ["figure_tensors"]


def figure_tensors(figures: Figures) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors that the engine alone can fill, each [1, 1]: moments, blocks of the cache, drafts."""
    drafted, accepted = figures.draft_tokens, figures.accepted_tokens
    counts = {
        "kv_cache_alloc_new_blocks": figures.new_blocks,
        "kv_cache_reused_blocks": figures.reused_blocks,
        "kv_cache_alloc_total_blocks": figures.total_blocks,
        "total_accepted_draft_tokens": accepted,
        "total_draft_tokens": drafted,
    }
    return {
        "first_scheduled_time_ns": np.array([[figures.first_scheduled_ns]], dtype=np.int64),
        "acceptance_rate": np.array([[accepted / drafted if drafted else 0.0]], dtype=np.float32),
        **{name: np.array([[count]], dtype=np.int32) for name, count in counts.items()},
    }
