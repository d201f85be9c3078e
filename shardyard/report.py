"""Datagrams to a supervisor on another host: JSON objects with the run's token."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

__all__ = ["REPORT_TO", "read_report", "send_report"]

#: In the environment of processes on other hosts: where reports go, as TOKEN@HOST:PORT.
REPORT_TO = "SHARDYARD_REPORT_TO"


def send_report(kind: str, content: dict[str, Any]) -> None:
    """Send one report; one that is lost is nobody's error."""
    token, _, address = os.environ[REPORT_TO].partition("@")
    host, _, port = address.rpartition(":")
    message = json.dumps({"token": token, "kind": kind, "content": content}).encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(message, (host, int(port)))
        except OSError:
            return


def read_report(message: bytes, token: str) -> tuple[str, dict[str, Any]] | None:
    """Return kind and content of a report of this run; None for anything else that comes to the port."""
    try:
        values = json.loads(message)
        if values["token"] != token:
            return None
        return str(values["kind"]), dict(values["content"])
    except (ValueError, KeyError, TypeError):
        return None
