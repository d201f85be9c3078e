"""Fake docker, enroot and apptainer: check their command lines word by word, then run the command as if inside.

Usage: fake_container.py PROGRAM ARGUMENTS…
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_control import become, record, refuse

#: Options of each program that a build may use: with a value (True) or without.
OPTIONS = {
    ("docker", "run"): {
        "--rm": False,
        "--gpus": True,
        "--net": True,
        "--shm-size": True,
        "--ulimit": True,
        "--volume": True,
        "--workdir": True,
    },
    ("enroot", "start"): {"--root": False, "--rw": False, "--mount": True},
    ("enroot", "import"): {"--output": True},
    ("apptainer", "exec"): {"--nv": False, "--cleanenv": False, "--bind": True, "--pwd": True},
}


def main() -> None:
    """Check, record, and become the command."""
    program, verb, *words = sys.argv[1:]
    options = OPTIONS.get((program, verb))
    if options is None:
        refuse(program, f"unknown verb {verb}")
        return
    parser = argparse.ArgumentParser(prog=f"{program} {verb}", allow_abbrev=False)
    for name, takes_value in options.items():
        if takes_value:
            parser.add_argument(name, action="append", default=[])
        else:
            parser.add_argument(name, action="store_true", required=True)
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = vars(parser.parse_args(words))
    record(program, verb=verb, **given)
    if verb == "import":
        Path(given["output"][0]).write_text("an image")
        return
    for mount in [*given.get("volume", []), *given.get("mount", []), *given.get("bind", [])]:
        inside, outside = mount.split(":")[:2]
        if inside != outside or not Path(outside).is_dir():
            refuse(program, f"{mount} does not mount an existing folder at its own path")
    become(given["command"])


if __name__ == "__main__":
    main()
