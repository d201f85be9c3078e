"""Certificates: checked before anything starts, given to the front, and to this machine's own clients."""

from __future__ import annotations

import ssl
from pathlib import Path

from shardyard.endpoint import GrpcTls
from shardyard.errors import LaunchError
from shardyard.tls_spec import TlsSpec

__all__ = ["check_tls", "client_tls", "server_context"]


def check_tls(tls: TlsSpec) -> None:
    """Check that the files can be read and belong together.

    Raises:
        LaunchError: they cannot or do not.
    """
    if not (tls.cert and tls.key):
        return
    for field in ("cert", "key", "client_ca", "ca"):
        path = getattr(tls, field)
        if path and not Path(path).is_file():
            raise LaunchError(f"serve.tls.{field}={path} is not a file", fix="name a file in PEM form")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise LaunchError(
            "serve.tls.cert and serve.tls.key cannot be used",
            why=f"OpenSSL says: {error}",
            fix="give a certificate and its own key, both PEM, the key without a password",
        ) from None
    for field in ("client_ca", "ca"):
        path = getattr(tls, field)
        try:
            if path:
                context.load_verify_locations(path)
        except OSError as error:
            raise LaunchError(
                f"serve.tls.{field}={path} holds no certificate", why=f"OpenSSL says: {error}", fix="give it as PEM"
            ) from None


def _no_password() -> bytes:
    raise ValueError("the key has a password, and nobody is there to type it")


def client_tls(tls: TlsSpec) -> GrpcTls | None:
    """Return how this machine's own clients connect; None: without encryption.

    Where clients need a certificate they show the server's own, which its CA must have signed too.
    """
    if not (tls.cert and tls.key):
        return None
    ca, cert, key = (str(Path(path).resolve()) for path in (tls.ca or tls.cert, tls.cert, tls.key))
    own = {"cert": cert, "key": key} if tls.client_ca else {}
    return GrpcTls(ca, **own, name=tls.name or "")


def server_context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return what a server of HTTP/2 needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key, password=_no_password)
    context.set_alpn_protocols(["h2"])
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
