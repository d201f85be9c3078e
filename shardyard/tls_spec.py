"""The section ``serve.tls`` of the pipeline file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from shardyard.section import Section

__all__ = ["TlsSpec"]


class TlsSpec(Section):
    """How gRPC is encrypted, by the front. All files are PEM."""

    cert: Annotated[str | None, Field(description="the server's certificate, with those between it and the CA")] = None
    key: Annotated[str | None, Field(description="its private key")] = None
    client_ca: Annotated[
        str | None, Field(description="whoever this CA has not signed is refused; default: clients need no certificate")
    ] = None
    ca: Annotated[
        str | None, Field(description="CA that this machine's own clients trust; default: the certificate itself")
    ] = None
    name: Annotated[
        str | None, Field(description="name in the certificate that own clients expect; default: the address")
    ] = None

    @model_validator(mode="after")
    def _whole(self) -> TlsSpec:
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls.cert and tls.key go together; possible: both or neither")
        if self.cert is None and (self.client_ca or self.ca or self.name):
            raise ValueError("tls.client_ca, ca and name say nothing without tls.cert and tls.key")
        return self
