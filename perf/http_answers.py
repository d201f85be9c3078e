"""What ``generate`` and ``generate_stream`` answer, read from their bodies."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["event_of", "message_of", "text_of"]

_DATA = b"data:"


def event_of(line: bytes) -> dict[str, object] | None:
    """Return the event in a line of ``generate_stream``; None: there is none in it."""
    if not line.startswith(_DATA):
        return None
    event: dict[str, object] = json.loads(line[len(_DATA) :])
    return event


def text_of(event: dict[str, Any]) -> str:
    """Return the text of an answer or of a piece of it."""
    text = event.get("text_output", "")
    return text if isinstance(text, str) else "".join(map(str, text)) if isinstance(text, list) else ""


def message_of(body: bytes) -> str:
    """Return the message of Triton's error body, or the body itself."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:500]
