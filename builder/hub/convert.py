"""Converts a checkpoint of the hub: downloads it, or where the disk is too short for that, streams it."""

from __future__ import annotations

from pathlib import Path

from shardyard.builder.convert import STAGE, convert, convert_planned
from shardyard.builder.estimate import free_bytes
from shardyard.builder.hub.address import HubAddress
from shardyard.builder.hub.snapshot import Snapshot
from shardyard.builder.hub.stream import HollowFiles
from shardyard.builder.plan import plan_source
from shardyard.builder.quantization.rank_plan import pipeline_plan
from shardyard.builder.source.checkpoint import open_source, read_json
from shardyard.builder.source.outline import outline
from shardyard.builder.source.stamps import PENDING
from shardyard.console import Console, human_bytes
from shardyard.content_hash import SHA256, tagged
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.manifest import FileStamp, read_manifest, stamp_files
from shardyard.spec import Pipeline
from shardyard.stage import StageResult

__all__ = ["bring_small_files", "convert_remote"]


def bring_small_files(address: HubAddress, folder: Path, console: Console) -> Snapshot:
    """Download everything but the weights into ``folder``: enough to plan with.

    Raises:
        CheckpointError: the hub refuses, cannot be reached, or a file has another hash than it lists.
        ArtifactError: the disk is full.
    """
    snapshot = Snapshot(address, folder, console)
    _bring(snapshot, weights=False)
    return snapshot


def convert_remote(address: HubAddress, pipeline: Pipeline, out: Path, console: Console) -> StageResult:
    """Convert ``address``; ``pipeline.checkpoint_path()`` is the folder that its files come into.

    Raises:
        CheckpointError: as ``bring_small_files``; the checkpoint is not supported, or cannot be cut by these degrees.
        ArtifactError: the disk has room neither for the download nor for one file of it beside the rank files.
    """
    folder = pipeline.checkpoint_path()
    snapshot = bring_small_files(address, folder, console)
    missing = snapshot.missing()
    if missing and _is_made_from(snapshot, out):
        return _stream(snapshot, pipeline, out, console)
    if missing:
        coming, free = sum(file.size for file in missing), free_bytes(out)
        needed = _rank_bytes(pipeline, folder) or coming
        if coming + needed <= free:
            console.stage("convert", f"downloading {len(missing)} file(s) of {address}, {human_bytes(coming)}")
            _bring(snapshot, weights=True)
        elif needed + max(file.size for file in missing) <= free:
            console.stage("convert", f"the disk has {human_bytes(free)} free: {address} is streamed file by file")
            return _stream(snapshot, pipeline, out, console)
        else:
            raise ArtifactError(
                f"{address} and {out} need {human_bytes(coming + needed)}; their disk has {human_bytes(free)} free",
                why=f"the rank files alone take {human_bytes(needed)}, and one file of the source must be beside them",
                fix="free space, or choose another disk with --work",
            )
    return convert(pipeline, out, console, snapshot.stamps())


def _bring(snapshot: Snapshot, *, weights: bool) -> None:
    try:
        snapshot.bring(snapshot.missing(weights=weights))
    except OSError as error:
        raise ArtifactError(
            f"{snapshot.folder} could not be written",
            why=error.strerror or str(error),
            fix="free space or choose another folder with --work; what has arrived is kept",
        ) from None


def _rank_bytes(pipeline: Pipeline, folder: Path) -> int | None:
    """Return the bytes of all rank files; None where only the weights' headers would tell."""
    if read_json(folder / "config.json").get("quantization_config") is not None:
        return None
    return sum(rank.weight_bytes for rank in plan_source(pipeline, outline(folder))[0].ranks)


def _is_made_from(snapshot: Snapshot, out: Path) -> bool:
    """Whether ``out`` was made from these weights: streaming leaves the rank files, and no source."""
    try:
        inputs = read_manifest(out, STAGE).inputs
    except ArtifactError:
        return False
    weights = [file for file in snapshot.listing.files if file.weights]
    return all(file.name in inputs and inputs[file.name].digest == tagged(SHA256, file.hash) for file in weights)


def _stream(snapshot: Snapshot, pipeline: Pipeline, out: Path, console: Console) -> StageResult:
    with HollowFiles(snapshot) as hollow:
        source = open_source(hollow.folder)
        if source.linears:
            raise CheckpointError(
                f"{snapshot.listing.address} cannot be streamed",
                why="its weights are quantised, and one of them may lie in several files",
                fix="free space for the whole download, or choose another disk with --work",
            )
        plan = pipeline_plan(source, pipeline)
        inputs = {
            file.name: FileStamp(tagged(SHA256, file.hash) if file.lfs else PENDING, file.size)
            for file in snapshot.listing.files
            if file.weights
        }
        inputs |= stamp_files(hollow.folder, set(source.names) - inputs.keys())
        return convert_planned(source, plan, out, console, inputs, snapshot.folder, hollow.filled)
