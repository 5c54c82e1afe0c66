"""The checks of everything about TLS: certificates that fit their keys, names, pins, and which client certificates are keys."""

from __future__ import annotations

import base64
import binascii
import datetime
import re
import ssl
import time
from pathlib import Path

from clawproxy.config.certificates import validity_of_file
from clawproxy.config.findings import Findings, check_file
from clawproxy.config.identities import identity_problem
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import dotted
from clawproxy.config.schema import Config, ProviderConfig
from clawproxy.config.tls import TLSConfig
from clawproxy.config.units import shown

_LABELS = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
_HOST = re.compile(rf"(?:\*\.)?{_LABELS}")
_SERVER_NAME = re.compile(rf"{_LABELS}|[0-9a-fA-F:.]+")


def check_tls(tls: TLSConfig, found: Findings) -> None:
    path: KeyPath = ("server", "tls")
    check_pair(tls.certificate, tls.key, path, found)
    taken: dict[str, KeyPath] = {}
    for index, each in enumerate(tls.names):
        where = (*path, "names", index)
        check_pair(each.certificate, each.key, where, found)
        if not each.hosts:
            found.wrong((*where, "hosts"), 'is empty; write the names this certificate is for, like ["api.example"]')
        for at, host in enumerate(each.hosts):
            here = (*where, "hosts", at)
            if not _HOST.fullmatch(host):
                found.wrong(here, f'"{shown(host)}" is no host name; write it like "api.example" or "*.example"')
            elif host.lower() in taken:
                found.wrong(here, f'"{shown(host)}" has a certificate already, at {dotted(taken[host.lower()])}')
            taken.setdefault(host.lower(), here)
    if tls.client_ca is None:
        if tls.client_auth != "none":
            found.wrong((*path, "client_ca"), "is missing: without it no client certificate can be checked; name a PEM file")
        return
    if tls.client_auth == "none":
        found.wrong((*path, "client_ca"), 'has no effect; set client_auth = "optional" or "required", or remove it')
    if check_file(tls.client_ca, (*path, "client_ca"), "a PEM file", found):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError):
            found.wrong((*path, "client_ca"), "holds no PEM certificate; name the certificates of the authorities")


def check_pair(certificate: Path, key: Path, path: KeyPath, found: Findings) -> None:
    missing = False
    for name, file in (("certificate", certificate), ("key", key)):
        missing |= not check_file(file, (*path, name), "a PEM file", found)
    if missing:
        return
    check_dates(certificate, (*path, "certificate"), found)
    try:
        # A password makes OpenSSL ask on the terminal; an empty one makes it fail.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else "not PEM, or encrypted"
        found.wrong(
            path, f"certificate and key can not be used together ({reason}); name a PEM certificate chain and its unencrypted key"
        )


def check_dates(certificate: Path, path: KeyPath, found: Findings) -> None:
    """A warning: the gateway can serve with it, and whoever connects refuses it."""
    validity, now = validity_of_file(certificate), time.time()
    if validity is not None and not validity[0] <= now < validity[1]:
        begins, ends = (datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d") for at in validity)
        wrong = f"expired on {ends}" if now >= validity[1] else f"is not valid before {begins}"
        found.warn(path, f"{wrong}, and who connects refuses it; put one there that is valid now")


def check_provider_tls(provider: ProviderConfig, path: KeyPath, found: Findings) -> None:
    tls, path = provider.tls, (*path, "tls")
    if tls is None:
        return
    if provider.base_url is None or not provider.base_url.lower().startswith("https:"):
        found.wrong(path, "has no meaning without an https base_url; remove it, or write https")
    if (tls.certificate is None) != (tls.key is None):
        given, other = ("certificate", "key") if tls.key is None else ("key", "certificate")
        found.wrong((*path, given), f"needs its {other}; name both")
    elif tls.certificate is not None and tls.key is not None:
        check_pair(tls.certificate, tls.key, path, found)
    for index, pin in enumerate(tls.pin):
        if not _is_pin(pin):
            found.wrong(
                (*path, "pin", index) if len(tls.pin) > 1 else (*path, "pin"),
                f'"{shown(pin)}" is no pin; write "sha256/" and the 44 characters of base64 of the digest of the public key',
            )
    if tls.server_name is not None and not _SERVER_NAME.fullmatch(tls.server_name):
        found.wrong((*path, "server_name"), f'"{shown(tls.server_name)}" is no host name; write it without scheme and port')


def _is_pin(pin: str) -> bool:
    kind, _, digest = pin.partition("/")
    try:
        return kind == "sha256" and len(base64.b64decode(digest, validate=True)) == 32
    except (binascii.Error, ValueError):
        return False


def check_certificates(config: Config, found: Findings) -> None:
    """Of `[keys]`: which client certificates are them."""
    tls = config.server.tls
    taken: dict[str, KeyPath] = {}
    for name, key in config.keys.items():
        path: KeyPath = ("keys", name, "certificates")
        if key.secret is None and not key.certificates:
            found.wrong(("keys", name, "secret"), "is missing; add `secret = ...` here, or `certificates`")
        if key.certificates and (tls is None or tls.client_auth == "none"):
            found.wrong(path, 'are never seen: clients are not asked for one; set client_auth = "optional" in [server.tls]')
        for index, identity in enumerate(key.certificates):
            where = (*path, index)
            problem = identity_problem(identity)
            if problem is not None:
                found.wrong(where, problem)
            elif identity in taken:
                found.wrong(where, f"is the same as {dotted(taken[identity])}; a certificate is one key")
            taken.setdefault(identity, where)
