"""Walks manifests from an artifact back to the source checkpoint, and re-checks the hashes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardyard.content_hash import hash_file
from shardyard.errors import ArtifactError
from shardyard.manifest import MANIFEST, FileStamp, Manifest, is_artifact, read_manifest

__all__ = ["Link", "check", "walk"]


@dataclass(frozen=True)
class Link:
    """One artifact of the chain and the folder that it was made from."""

    folder: Path
    manifest: Manifest

    @property
    def source(self) -> Path:
        """The folder that this artifact was made from."""
        return self.folder.absolute().parent / self.manifest.source


def walk(path: Path) -> list[Link]:
    """Return the chain, newest artifact first; ``path`` is an artifact's folder or a file in one.

    Raises:
        ArtifactError: ``path`` belongs to no artifact, or a folder of the chain is gone or was made anew since.
    """
    folder = path.absolute()
    while not is_artifact(folder):
        if folder.parent == folder:
            raise ArtifactError(
                f"{path} belongs to no artifact",
                why=f"neither it nor a folder above it holds a {MANIFEST}",
                fix="give a folder that a stage wrote, for example work/demo/model_repo",
            )
        folder = folder.parent
    links = [Link(folder, read_manifest(folder))]
    while (parent := links[-1].manifest.parent) is not None:
        source = links[-1].source
        manifest = read_manifest(source)
        if hash_file(source / MANIFEST, parent) != parent:
            raise ArtifactError(
                f"the chain breaks between {links[-1].folder} and {source}",
                why=f"{source} was made anew after {links[-1].folder} had been made from it",
                fix=f"run the stage again: shardyard {links[-1].manifest.stage}",
            )
        links.append(Link(source, manifest))
    return links


def check(links: list[Link]) -> list[str]:
    """Hash every file of the chain again and return what differs, one line each; none when all is as recorded."""
    found = []
    for link in links:
        found += _compare(link.folder, link.manifest.outputs)
    found += _compare(links[-1].source, links[-1].manifest.inputs)
    return found


def _compare(folder: Path, stamps: dict[str, FileStamp]) -> list[str]:
    found = []
    for name, stamp in stamps.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif hash_file(path, stamp.digest) != stamp.digest:
            found.append(f"{path} does not have the content that was recorded")
    return found
