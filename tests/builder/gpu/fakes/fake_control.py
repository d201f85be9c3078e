"""What the fakes share: settings that a test leaves in a folder, and a record of every call."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["SHARDYARD_FAKES"])


def setting(name: str, default: Any = None) -> Any:
    """Return what the test set for this host below ``hosts``, or for all, else ``default``."""
    path = FOLDER / "settings.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return {**settings, **settings.get("hosts", {}).get(os.uname().nodename, {})}.get(name, default)


def record(program: str, **facts: Any) -> None:
    """Add one call to the record; short lines are appended whole, also by several processes at once."""
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"program": program, **facts}) + "\n")


def refuse(program: str, why: str) -> None:
    """End with an error that the test sees."""
    record(program, refused=why)
    raise SystemExit(f"fake {program}: {why}")


def become(command: list[str]) -> None:
    """Go on as ``command``, with the fakes first on PATH, as it is inside an image."""
    path = os.pathsep.join([str(FOLDER / "bin"), os.environ["PATH"]])
    os.environ["PATH"] = path
    os.execvp(command[0], command)
