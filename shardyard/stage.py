"""What every stage has in common: skip when up to date, else write the artifact, and say which of the two and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.artifacts import Draft, write_artifact
from shardyard.console import Console
from shardyard.manifest import FileStamp, Manifest, differences, link_to_parent, read_manifest

__all__ = ["StageResult", "run_stage"]


@dataclass(frozen=True)
class StageResult:
    """A stage's artifact. ``fresh``: nothing was done, it was up to date; else ``reason`` says why it was made."""

    folder: Path
    manifest: Manifest
    fresh: bool
    reason: str | None


def run_stage(
    stage: str,
    target: Path,
    source: Path,
    inputs: Mapping[str, FileStamp],
    settings: Mapping[str, Any],
    toolchain: Mapping[str, str],
    work: Callable[[Draft], None],
    console: Console,
) -> StageResult:
    """Run ``work`` on a draft of ``target`` unless the target is up to date for these inputs."""
    reasons = differences(target, stage, inputs, settings, toolchain)
    if not reasons:
        manifest = link_to_parent(target, read_manifest(target, stage), source)
        console.stage(stage, f"up to date: inputs, settings and tool chain are those of {target} ({manifest.key[:12]})")
        return StageResult(target, manifest, True, None)
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 and not console.explain else ""
    console.stage(stage, f"making {target} ({reasons[0]}{more})")
    for reason in reasons[1:] if console.explain else ():
        console.stage("", reason)
    with write_artifact(target, stage, source, inputs, settings, toolchain) as draft:
        work(draft)
    manifest = read_manifest(target, stage)
    console.stage(stage, f"done in {manifest.timings['total_s']:.1f} s ({manifest.key[:12]})")
    return StageResult(target, manifest, False, reasons[0])
