"""hf:// sources against a local server with the hub's URLs: resume, hashes, tokens, redirects, streaming."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.estimate import free_bytes
from shardyard.builder.hub import download
from shardyard.builder.hub.address import HubAddress
from shardyard.builder.hub.convert import bring_small_files, convert_remote
from shardyard.console import Console
from shardyard.content_hash import hash_file
from shardyard.errors import ArtifactError, CheckpointError
from shardyard.manifest import MANIFEST
from shardyard.pipeline_file import parse_pipeline
from shardyard.spec import ParallelSpec, Pipeline

Write = Callable[..., Path]
QUIET = Console(quiet=True)
ADDRESS = HubAddress("org/name", "v1")
COMMIT = "c" * 40
GRID = {"tp": 2}


@dataclass
class Hub:
    """A model on a server: its ``folder``, the requests that came, and how the server misbehaves."""

    folder: Path
    url: str = ""
    other_url: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    token: str | None = None
    cut_after: int | None = None
    ranges: bool = True
    spoilt: str | None = None
    down: bool = False

    def fetched(self) -> list[tuple[str, str]]:
        """File and range of each download, those of the second host only once."""
        return [(path.rsplit("/", 1)[1], head.get("Range", "")) for _, path, head in self.requests if "/cdn/" in path]

    def siblings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"rfilename": "original/consolidated.00.pth", "size": 1, "blobId": "0"}]
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            entry: dict[str, Any] = {"rfilename": path.name, "size": len(data)}
            if path.suffix == ".safetensors":
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            found.append(entry)
        return found


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append((str(self.headers["Host"]), path, dict(self.headers)))
        if hub.down:
            self.send_error(503)
        elif "/cdn/" not in path and hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            self.send_error(401)
        elif path == "/api/models/org/name/revision/v1":
            self._answer(json.dumps({"sha": COMMIT, "siblings": hub.siblings()}).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self.send_response(302)
            self.send_header("Location", f"{hub.other_url}/cdn/{path.rsplit('/', 1)[1]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/cdn/") and (hub.folder / path[5:]).is_file():
            data = (hub.folder / path[5:]).read_bytes()
            self._answer(bytes(len(data)) if path[5:] == hub.spoilt else data)
        else:
            self.send_error(404)

    def _answer(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "") if self.hub.ranges else None
        start = int(asked[1]) if asked else 0
        data = data[start : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut, self.hub.cut_after = self.hub.cut_after, None
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[:cut])
        self.close_connection = True


@pytest.fixture
def hub(write_checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model; large files come from a second host, as they do on the real one."""
    folder = write_checkpoint(tmp_path / "hub", shards=3)
    (folder / "README.md").write_text("not wanted")
    (folder / "tokenizer.json").write_text("{}")
    made = Hub(folder)
    handler = type("Bound", (Handler,), {"hub": made})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    made.url, made.other_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(download, "PAUSES_S", (0.0, 0.0))
    yield made
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def pipeline(folder: Path) -> Pipeline:
    return parse_pipeline({"name": "t", "model": {"checkpoint": str(folder)}, "parallel": GRID})


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != MANIFEST
    }


def expected(hub: Hub, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "expected").mkdir()
    convert_checkpoint(hub.folder, tmp_path / "expected", ParallelSpec(**GRID))
    return digests(tmp_path / "expected")


def test_a_model_is_downloaded_once_and_converted(hub: Hub, tmp_path: Path) -> None:
    source, out = tmp_path / "w" / "source", tmp_path / "w" / "out"
    made = convert_remote(ADDRESS, pipeline(source), out, QUIET)
    assert digests(out) == expected(hub, tmp_path)
    there = {path.name for path in source.iterdir()} - {".hub.json"}
    assert there == {path.name for path in hub.folder.iterdir()} - {"README.md"}
    for name, stamp in made.manifest.inputs.items():
        data = (hub.folder / name).read_bytes()
        sha256 = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert stamp.digest == (sha256 if name.endswith(".safetensors") else hash_file(hub.folder / name))
    asked = len(hub.fetched())
    assert convert_remote(ADDRESS, pipeline(source), out, QUIET).fresh
    assert len(hub.fetched()) == asked
    hub.down = True
    assert convert_remote(ADDRESS, pipeline(source), out, QUIET).fresh


def test_a_download_that_was_killed_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    bring_small_files(ADDRESS, tmp_path / "w" / "source", QUIET)
    out = tmp_path / "w" / "out"
    first = next(path.name for path in sorted(hub.folder.glob("*.safetensors")))
    (tmp_path / "w" / "source" / f".{first}.part").write_bytes((hub.folder / first).read_bytes()[:1000])
    convert_remote(ADDRESS, pipeline(tmp_path / "w" / "source"), out, QUIET)
    assert digests(out) == expected(hub, tmp_path)
    assert [asked for name, asked in hub.fetched() if name == first] == [
        f"bytes=1000-{(hub.folder / first).stat().st_size - 1}"
    ]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_an_answer_that_is_cut_short(hub: Hub, tmp_path: Path, ranges: bool) -> None:
    snapshot = bring_small_files(ADDRESS, tmp_path / "source", QUIET)
    hub.cut_after, hub.ranges = 1500, ranges
    snapshot.bring(snapshot.missing()[:1])
    name = snapshot.listing.files[-3].name
    assert (tmp_path / "source" / name).read_bytes() == (hub.folder / name).read_bytes()
    assert len([asked for asked, _ in hub.fetched() if asked == name]) == 2


def test_other_content_than_the_hub_lists_is_refused(hub: Hub, tmp_path: Path) -> None:
    source, out = tmp_path / "w" / "source", tmp_path / "w" / "out"
    hub.spoilt = "model-00002-of-00003.safetensors"
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors .* other content"):
        convert_remote(ADDRESS, pipeline(source), out, QUIET)
    assert not out.exists()
    hub.spoilt = None
    convert_remote(ADDRESS, pipeline(source), out, QUIET)
    assert digests(out) == expected(hub, tmp_path)


def test_the_token_goes_to_the_endpoint_and_nowhere_else(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "right"
    with pytest.raises(CheckpointError, match="may not be read") as caught:
        bring_small_files(ADDRESS, tmp_path / "source", QUIET)
    assert "HF_TOKEN" in caught.value.fix
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.requests.clear()
    bring_small_files(ADDRESS, tmp_path / "source", QUIET)
    assert {"Authorization" in head for _, path, head in hub.requests if "/cdn/" in path} == {False}


def test_without_room_for_a_copy_it_is_streamed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "w" / "source", tmp_path / "w" / "out"
    wanted = expected(hub, tmp_path)
    weights = {path.name: path.stat().st_size for path in hub.folder.glob("*.safetensors")}
    rank_bytes = sum(path.stat().st_size for path in (tmp_path / "expected").glob("*.safetensors"))
    usage = type("Usage", (), {"free": rank_bytes + max(weights.values())})
    monkeypatch.setattr("shardyard.builder.estimate.shutil.disk_usage", lambda folder: usage)
    assert free_bytes(out) == usage.free  # type: ignore[attr-defined]
    made = convert_remote(ADDRESS, pipeline(source), out, QUIET)
    assert digests(out) == wanted
    assert not list(source.glob("*.safetensors"))
    assert not list(source.parent.glob(".source.stream"))
    for name in weights:
        assert (
            made.manifest.inputs[name].digest
            == f"sha256:{hashlib.sha256((hub.folder / name).read_bytes()).hexdigest()}"
        )
    usage.free = 0  # type: ignore[attr-defined]
    assert convert_remote(ADDRESS, pipeline(source), out, QUIET).fresh


def test_spoilt_content_is_not_streamed_into_an_artifact(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "w" / "source", tmp_path / "w" / "out"
    name = "model-00003-of-00003.safetensors"
    data = bytearray((hub.folder / name).read_bytes())
    listed = hub.siblings()
    data[-1] ^= 1
    (hub.folder / name).write_bytes(data)
    monkeypatch.setattr(hub, "siblings", lambda: listed)
    size = sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    usage = type("Usage", (), {"free": size * 3 // 2})
    monkeypatch.setattr("shardyard.builder.estimate.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match="other content"):
        convert_remote(ADDRESS, pipeline(source), out, QUIET)
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["source"]


def test_without_room_for_anything_it_is_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shardyard.builder.estimate.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ArtifactError, match=r"1\.00 kB free"):
        convert_remote(ADDRESS, pipeline(tmp_path / "w" / "source"), tmp_path / "w" / "out", QUIET)
    assert "model-00001-of-00003.safetensors" not in dict(hub.fetched())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf://org/name@v1.0", HubAddress("org/name", "v1.0")),
        ("hf://org/name", HubAddress("org/name", "main")),
        ("hf://org/name@refs/pr/3", HubAddress("org/name", "refs/pr/3")),
        ("hf://org/name/more", None),
        ("hf://", None),
        ("hf://org/name@", None),
    ],
)
def test_addresses(text: str, wanted: HubAddress | None) -> None:
    if wanted:
        assert HubAddress.parse(text) == wanted
    else:
        with pytest.raises(CheckpointError, match="is not an address"):
            HubAddress.parse(text)


def test_a_hub_that_does_not_know_the_model(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not found"):
        bring_small_files(HubAddress("org/other"), tmp_path / "source", QUIET)
    hub.down = True
    with pytest.raises(CheckpointError, match="cannot be reached"):
        bring_small_files(ADDRESS, tmp_path / "source", QUIET)


def test_the_command_line_plans_from_the_index_alone(hub: Hub, tmp_path: Path, shardyard: Callable[..., Any]) -> None:
    (tmp_path / "p.yaml").write_text("name: t\nmodel: {checkpoint: 'hf://org/name@v1'}\nparallel: {tp: 2}\n")
    done = shardyard("convert", "p.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "convert reads" in done.stdout
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]
    done = shardyard("convert", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "work" / "t" / "checkpoint") == expected(hub, tmp_path)
