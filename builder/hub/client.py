"""Talks HTTP to the hub: endpoint and token from the environment, ranges, and errors that say what to do.

The endpoint is HF_ENDPOINT (https://huggingface.co), the token HF_TOKEN; both names are the hub's own.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any, cast

from shardyard.builder.hub.address import HubAddress
from shardyard.errors import CheckpointError, ToolchainError

__all__ = ["NETWORK_ERRORS", "HubClient"]

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30.0
#: What a broken connection raises, at any moment.
NETWORK_ERRORS = (OSError, HTTPException)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes the token to no other host: the hub sends large files from elsewhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")
        return made


class HubClient:
    """One endpoint."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        """Take what is not given from the environment.

        Raises:
            ToolchainError: the endpoint is no HTTP address.
        """
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if urllib.parse.urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ToolchainError(f"HF_ENDPOINT={self.endpoint} is not an http(s) address", fix="set it, or unset it")
        self._token = token or os.environ.get("HF_TOKEN")
        self._opener = urllib.request.build_opener(_Redirects())

    def model(self, address: HubAddress) -> dict[str, Any]:
        """Return what the hub says of a model at a revision: its commit, and its files with sizes and hashes.

        Raises:
            CheckpointError: there is no such model or revision, or the token may not see it.
            OSError, HTTPException: the network failed.
        """
        revision = urllib.parse.quote(address.revision, safe="")
        url = f"{self.endpoint}/api/models/{address.name}/revision/{revision}?blobs=true"
        with self._open(url, address, {}) as response:
            try:
                content = json.load(response)
            except ValueError:
                content = None
        if not isinstance(content, dict) or not isinstance(content.get("siblings"), list):
            raise CheckpointError(
                f"{url} does not answer as the hub does", why="its answer lists no files", fix="check HF_ENDPOINT"
            )
        return content

    def open_file(self, address: HubAddress, commit: str, name: str, start: int, stop: int | None) -> HTTPResponse:
        """Open bytes ``start`` to ``stop`` (None: the end) of a file; a server may send the whole file instead (200).

        Raises:
            CheckpointError: the file is not there, or the token may not see it.
            OSError, HTTPException: the network failed.
        """
        url = f"{self.endpoint}/{address.name}/resolve/{commit}/{urllib.parse.quote(name)}"
        last = "" if stop is None else stop - 1
        return self._open(url, address, {"Range": f"bytes={start}-{last}"} if start or stop is not None else {})

    def _open(self, url: str, address: HubAddress, headers: dict[str, str]) -> HTTPResponse:
        # Compressed answers would have other ranges.
        headers = {"User-Agent": "shardyard", "Accept-Encoding": "identity", **headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            opened = self._opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500 or error.code == 429:
                    raise OSError(f"{url} answers {error.code} {error.reason}") from None
            raise _refused(error.code, url, address, bool(self._token)) from None
        return cast(HTTPResponse, opened)


def _refused(code: int, url: str, address: HubAddress, has_token: bool) -> CheckpointError:
    if code in (401, 403):
        return CheckpointError(
            f"{address} may not be read ({code})",
            why="the token in HF_TOKEN has no access to it" if has_token else "it is private or gated, or is not there",
            fix="accept the model's terms on the hub, and set HF_TOKEN to a token that may read it",
        )
    return CheckpointError(f"{address} was not found ({code})", why=f"asked for {url}", fix="check name and revision")
