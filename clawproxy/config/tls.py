"""`[server.tls]`: the listeners' certificates. `checks_tls` says what does not fit; docs/tls.md is the page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

ClientAuth = Literal["none", "optional", "required"]


@frozen
class TLSNameConfig:
    """The certificate for clients that ask for one of these names (SNI)."""

    hosts: tuple[str, ...]
    """`api.example`, or `*.example` for every name one label longer."""
    certificate: Path
    key: Path


@frozen
class TLSConfig:
    certificate: Path
    key: Path
    client_ca: Path | None = None
    """PEM certificates of the authorities whose client certificates are accepted."""
    client_auth: ClientAuth = "none"
    """Whether clients are asked for a certificate, and whether they must show one."""
    names: tuple[TLSNameConfig, ...] = ()
    """More certificates, by name; `certificate` is for the rest."""
