"""What a config.json may ask for that would change the maths and is not supported: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.builder.families.rules import Family, Refused
from shardyard.errors import CheckpointError

__all__ = ["refuse"]

#: Keys that change the maths, the values with which they do not, and what they ask for otherwise. A key that is
#: absent or null is always fine; what a family ``reads`` is supported there.
_REFUSED: tuple[Refused, ...] = (
    ("hidden_act", ("silu", "swish"), "another activation"),
    ("use_sliding_window", (False,), "sliding-window attention"),
    ("partial_rotary_factor", (1, 1.0), "rotation of a part of each head"),
    ("rotary_pct", (1, 1.0), "rotation of a part of each head"),
    ("rope_interleaved", (False,), "interleaved rotation"),
    ("attn_logit_softcapping", (), "soft-capped attention"),
    ("final_logit_softcapping", (), "soft-capped logits"),
    ("query_pre_attn_scalar", (), "scaled attention"),
    ("clip_qkv", (), "clipped queries, keys and values"),
    ("qk_layernorm", (False,), "normalised queries and keys"),
    ("use_qk_norm", (False,), "normalised queries and keys"),
    ("use_logn_attn", (False,), "log-n scaled attention"),
    ("use_mrope", (False,), "multimodal rotation"),
    ("alibi", (False,), "ALiBi positions"),
    ("attention_multiplier", (), "scaled attention"),
    ("embedding_multiplier", (1, 1.0), "scaled embeddings"),
    ("residual_multiplier", (1, 1.0), "scaled residuals"),
    ("logits_scaling", (1, 1.0), "scaled logits"),
    ("num_local_experts", (0,), "experts"),
    ("num_experts", (0,), "experts"),
    ("no_rope_layers", ([],), "layers without rotation"),
    ("is_decoder_only", (True,), "an encoder"),
    ("add_cross_attention", (False,), "attention to an encoder"),
)


def refuse(raw: Mapping[str, Any], family: Family, path: Path) -> None:
    """Check that config.json asks for nothing that is not supported.

    Raises:
        CheckpointError: names the key, its value, and what it asks for.
    """
    table = [line for line in _REFUSED if line[0] not in family.reads] + list(family.refused)
    wanted = [
        (key, raw[key], what)
        for key, fine, what in table
        if raw.get(key) is not None and raw[key] not in (fine(raw) if callable(fine) else fine)
    ]
    window = raw.get("sliding_window")
    if window is not None and "use_sliding_window" not in raw and "sliding_window" not in family.reads:
        wanted.append(("sliding_window", window, "sliding-window attention"))
    kinds = raw.get("layer_types") or []
    known = {"full_attention"} | ({"sliding_attention"} if "sliding_window" in family.reads else set())
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in known for kind in kinds):
        wanted.append(("layer_types", kinds, f"layers other than {' and '.join(sorted(known))}"))
    for key, value, what in wanted:
        raise CheckpointError(
            f"{path}: {key}={value!r} is not supported",
            why=f"it asks for {what}, which the engines would silently leave out",
            fix="use a checkpoint without it; if the weights were trained without it, remove the key",
        )
