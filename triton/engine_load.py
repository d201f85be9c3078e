"""How many requests TensorRT-LLM's C++ backend has open, as its metrics say."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request

from shardyard.endpoint import Endpoint

__all__ = ["EngineLoad"]

_ACTIVE = re.compile(r'^nv_trt_llm_request_metrics\{[^}]*request_type="active"[^}]*\} (\S+)$', re.MULTILINE)

#: Seconds for which the gauge may show what was before: the backend writes it every 0.1 s.
_STALE = 0.3
_PATIENCE = 2.0


class EngineLoad:
    """Counts an endpoint's open requests, waiting ones included, from the moment of the first question on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.metrics_url
        self._asked: float | None = None

    def __call__(self) -> int | None:
        """Return how many are open; None while that is not known."""
        now = time.monotonic()
        self._asked = now if self._asked is None else self._asked
        if now - self._asked < _STALE:
            return None
        try:
            with urllib.request.urlopen(self._url, timeout=_PATIENCE) as answer:
                found = _ACTIVE.findall(answer.read().decode(errors="replace"))
            return sum(int(float(value)) for value in found) if found else None
        except (OSError, ValueError, urllib.error.URLError):
            return None
