"""A Hugging Face checkpoint on disk: config.json, and the tensors of one safetensors file or of an indexed set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardyard.builder.config.hf_config import HfConfig, parse_config
from shardyard.builder.dtypes import BY_NAME, Array, cast
from shardyard.builder.quantization.linears import Linears, find_linears
from shardyard.builder.quantization.source_format import SourceFormat, parse_format
from shardyard.builder.source.safetensors_file import SafetensorsFile, TensorEntry
from shardyard.console import Console
from shardyard.errors import CheckpointError
from shardyard.manifest import FileStamp, stamp_files

__all__ = ["HEADS", "SourceCheckpoint", "open_source", "read_json"]

#: Names of the output matrix, which no prefix has.
HEADS = ("lm_head.weight", "embed_out.weight")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Where NVIDIA's ModelOpt says how it quantized the weights.
MODELOPT = "hf_quant_config.json"


@dataclass(frozen=True)
class SourceCheckpoint:
    """An opened checkpoint: ``files`` in the order of their names, ``entries`` maps every tensor to its place.

    ``linears`` are the layers that are quantized; their weights are entries too, under the names of plain ones.
    ``rounded`` names the type that all other tensors are rounded to when they are read; None: they keep theirs.
    """

    folder: Path
    config: HfConfig
    files: tuple[SafetensorsFile, ...]
    entries: Mapping[str, TensorEntry]
    names: tuple[str, ...]
    linears: Linears | None = None
    rounded: str | None = None

    def array(self, name: str) -> Array:
        """Return a tensor as a read-only view of its mapped file; a quantized weight as the float32 it stands for."""
        if self.linears and name in self.linears.names:
            return self.linears.weight(name).dequantized()
        entry = self.entries[name]
        array = next(file for file in self.files if file.path == entry.path).view(entry)
        return array if self.rounded is None else cast(array, BY_NAME[self.rounded])

    def stamp(self, known: Mapping[str, FileStamp], console: Console) -> dict[str, FileStamp]:
        """Stamp every file that convert reads; unchanged files of ``known`` are not hashed again."""
        sizes = {name: (self.folder / name).stat().st_size for name in self.names}
        stamps: dict[str, FileStamp] = {}
        with console.progress("hash source", sum(sizes.values()), "B") as advance:
            for name, size in sizes.items():
                stamps |= stamp_files(self.folder, [name], known)
                advance(size, name)
        return stamps


def open_source(folder: Path) -> SourceCheckpoint:
    """Open the checkpoint in ``folder``: read config.json, the index and every header, and check them all.

    Raises:
        CheckpointError: something is missing, broken, or of a kind that is not supported.
    """
    _check_folder(folder)
    raw = read_json(folder / "config.json")
    config = parse_config(raw, folder / "config.json")
    modelopt = read_json(folder / MODELOPT) if (folder / MODELOPT).is_file() else None
    form = parse_format(raw, modelopt, folder / "config.json")
    if (folder / INDEX).is_file():
        names, weight_map = _read_index(folder)
    else:
        names, weight_map = _single_file(folder), None
    files = tuple(SafetensorsFile(folder / name) for name in names)
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for twice in entries.keys() & file.entries.keys():
            raise CheckpointError(
                f"tensor {twice} is in {entries[twice].path.name} and in {file.path.name}",
                why="one of the two would win by chance",
                fix="remove the file that does not belong to this checkpoint",
            )
        entries |= file.entries
    if weight_map is not None:
        _check_index(folder, weight_map, entries)
    extra = [name for name, used in ((MODELOPT, modelopt), (INDEX, weight_map)) if used is not None]
    named = _with_prefix(entries, config.family.prefix)
    opened = SourceCheckpoint(folder, config, files, named, ("config.json", *extra, *names))
    return opened if form is None else _seen_plain(opened, form)


def _with_prefix(entries: Mapping[str, TensorEntry], prefix: str) -> dict[str, TensorEntry]:
    """Return the entries under their full names: files of a bare model leave the family's prefix out."""
    if any(name.startswith(prefix) for name in entries):
        return dict(entries)
    full = {name: name if name in HEADS else f"{prefix}{name}" for name in entries}
    return {full[name]: replace(entry, name=full[name]) for name, entry in entries.items()}


def _seen_plain(source: SourceCheckpoint, form: SourceFormat) -> SourceCheckpoint:
    """Return a quantized checkpoint as one of plain weights."""
    linears = find_linears(form, source.entries, source.array)
    hidden = linears.used()
    rest = {name: entry for name, entry in source.entries.items() if name not in hidden}
    return replace(source, entries=rest | linears.plain_entries(), linears=linears)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist",
            why="every Hugging Face checkpoint has one",
            fix="give model.checkpoint the folder that holds config.json and *.safetensors",
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", why=str(error), fix="download the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", fix="download the file again")
    return content


def _check_folder(folder: Path) -> None:
    if str(folder).startswith("hf:"):
        name = str(folder).removeprefix("hf:").lstrip("/")
        raise CheckpointError(
            f"model.checkpoint=hf://{name} is not a folder on this machine",
            why="checkpoints are read from disk",
            fix=f"download it first (hf download {name.partition('@')[0]} --local-dir DIR) and name DIR",
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"model.checkpoint={folder} {'is not a folder' if folder.exists() else 'does not exist'}",
            why=f"it is looked up from {Path.cwd()}" if not folder.is_absolute() else "",
            fix="give the folder that holds config.json and *.safetensors",
        )


def _single_file(folder: Path) -> tuple[str, ...]:
    if (folder / SINGLE).is_file():
        return (SINGLE,)
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if found:
        why, fix = f"there are {found[0]} and {len(found) - 1} more, but no index", f"restore {INDEX}"
    elif pickled:
        why = f"{pickled[0]} is a pickle, which can run code when it is read"
        fix = "save it again with save_pretrained(…, safe_serialization=True)"
    else:
        why, fix = "the folder holds no weights", "download the weights too"
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}", why=why, fix=fix)


def _read_index(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor to file", fix="download the file again")
    names = tuple(sorted(set(weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}, which is not a file of its folder", fix="mend the index")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / missing[0]} is missing",
            why=f"{INDEX} names {len(names)} files; missing: {', '.join(missing)}",
            fix="download the missing files",
        )
    return names, weight_map


def _check_index(folder: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    for name, file in weight_map.items():
        if name not in entries or entries[name].path.name != file:
            raise CheckpointError(
                f"{folder / file} does not hold tensor {name}",
                why=f"{INDEX} says that it does",
                fix="download the index and the file again; they are of different versions",
            )
