"""What can be said of a guide without compiling it."""

from __future__ import annotations

from typing import get_args

from shardyard.errors import RequestError
from shardyard.runtime.request import Guide, GuideKind

__all__ = ["check_guide"]

#: Characters of a guide's text; a longer one is a mistake or an attack.
_MOST_TEXT = 1 << 20


def check_guide(guide: Guide) -> None:
    """Check a guide before its request is queued.

    Raises:
        RequestError: its kind is unknown, or its text is missing or too long.
    """
    kinds = get_args(GuideKind)
    if guide.kind not in kinds:
        raise RequestError(f"guide type {guide.kind!r} is unknown", why=f"known: {', '.join(kinds)}")
    if guide.kind != "json" and not guide.text.strip():
        raise RequestError(f"the guide is empty, and its type is {guide.kind}", fix="send the text of the guide too")
    if len(guide.text) > _MOST_TEXT:
        raise RequestError(f"the guide has {len(guide.text)} characters", why=f"at most {_MOST_TEXT} are possible")
