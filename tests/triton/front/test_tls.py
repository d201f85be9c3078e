"""gRPC with certificates: what is refused before the start, and an endpoint that is served so."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from shardyard.endpoint import Endpoint, read_endpoint
from shardyard.errors import LaunchError, PipelineError, RequestError
from shardyard.pipeline_file import parse_pipeline
from shardyard.tls_spec import TlsSpec
from shardyard.triton.client import GenerateRequest, StreamClient
from shardyard.triton.front.tls import check_tls
from shardyard.triton.serve import Server


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, two certificates by it for this machine, one by another CA, and a key with a password."""
    folder = tmp_path_factory.mktemp("pem")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, by in (("server", ca), ("other", ca), ("alien", trustme.CA())):
        issued = by.issue_cert("127.0.0.1", f"{name}.example")
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (folder / "locked.key").write_bytes(locked)
    return folder


def files(pem: Path, **names: str) -> dict[str, str]:
    return {field: str(pem / name) for field, name in names.items()}


def ask(endpoint: Endpoint) -> str:
    with StreamClient(endpoint) as client:
        return "".join(client.generate(GenerateRequest("word", 2, timeout_s=20)))


@pytest.mark.e2e
def test_an_endpoint_with_certificates(start: Callable[..., Server], pem: Path, tmp_path: Path) -> None:
    tls = files(pem, cert="server.pem", key="server.key", client_ca="ca.pem", ca="ca.pem")
    with start(1, tls={**tls, "name": "server.example"}) as server:
        server.endpoint.write(tmp_path / "endpoint.json")
        assert read_endpoint(tmp_path / "endpoint.json") == server.endpoint
        assert ask(server.endpoint) == "word word "
        address = server.endpoint.grpc_address
        ca = (pem / "ca.pem").read_bytes()
        pairs = {
            name: [(pem / f"{name}.{kind}").read_bytes() for kind in ("key", "pem")] for name in ("other", "alien")
        }
        works = {
            "its own certificate": grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, *pairs["other"])),
            "none": grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)),
            "another CA's": grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, *pairs["alien"])),
            "no encryption": grpc.insecure_channel(address),
        }
        found = {}
        for how, channel in works.items():
            with channel:
                live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                try:
                    live(b"", timeout=20)
                    found[how] = True
                except grpc.RpcError:
                    found[how] = False
        assert found == {how: how == "its own certificate" for how in works}


@pytest.mark.e2e
def test_requests_that_are_too_large(start: Callable[..., Server]) -> None:
    with (
        start(1, max_request_mib=1) as server,
        pytest.raises(RequestError, match="failed before any answer") as caught,
        StreamClient(server.endpoint) as client,
    ):
        list(client.generate(GenerateRequest("x" * (1 << 20), 1, timeout_s=20)))
    assert "RESOURCE_EXHAUSTED" in caught.value.why
    assert str(1 << 20) in caught.value.why


@pytest.mark.e2e
def test_http_bodies_that_are_too_large(start: Callable[..., Server]) -> None:
    """In one piece or in chunks of unknown number; the next request is answered."""

    def post(text: str, *, chunks: bool) -> tuple[int, str]:
        body = json.dumps({"text_input": text, "max_tokens": 2}).encode()
        connection = http.client.HTTPConnection(server.endpoint.host, server.endpoint.http_port, timeout=20)
        pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        connection.request("POST", "/v2/models/ensemble/generate", pieces if chunks else body, encode_chunked=chunks)
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        return answer.status, said

    with start(1, max_request_mib=1) as server:
        for chunks in (False, True):
            status, said = post("x" * (1 << 20), chunks=chunks)
            assert (status, "serve.max_request_mib" in json.loads(said)["error"]) == (413, True)
            assert post("word", chunks=chunks)[0] == 200


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ({"cert": "nowhere.pem", "key": "server.key"}, "is not a file"),
        ({"cert": "server.pem", "key": "other.key"}, "cannot be used"),
        ({"cert": "server.key", "key": "server.key"}, "cannot be used"),
        ({"cert": "server.pem", "key": "server.key", "client_ca": "other.key"}, "holds no certificate"),
    ],
)
def test_files_that_do_not_fit(pem: Path, names: dict[str, str], hint: str) -> None:
    check_tls(TlsSpec(**files(pem, cert="server.pem", key="server.key", ca="ca.pem")))
    with pytest.raises(LaunchError, match=hint):
        check_tls(TlsSpec(**files(pem, **names)))


def test_a_key_with_a_password(pem: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be used") as caught:
        check_tls(TlsSpec(**files(pem, cert="server.pem", key="locked.key")))
    assert "password" in caught.value.why


@pytest.mark.parametrize(
    ("serve", "hint"),
    [
        ({"tls": {"cert": "a"}}, "go together"),
        ({"tls": {"ca": "a"}}, "say nothing without"),
        ({"tls": {"cert": "a", "key": "b"}, "grpc_front": False}, "tls is the front's"),
    ],
)
def test_fields_that_do_not_go_together(serve: dict[str, object], hint: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline({"name": "t", "model": {"checkpoint": "x"}, "serve": serve})
    assert hint in str(caught.value)
