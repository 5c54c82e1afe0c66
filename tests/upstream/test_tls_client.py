"""TLS towards providers beyond verification: a certificate of the gateway's own, a pinned key, another server name (A19)."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import ProviderTLSConfig
from clawproxy.errors import ConfigError
from clawproxy.events import End, Text
from clawproxy.upstream.pins import pin_of, public_key_info
from tests.upstream.kit import Conversation, always, bench, make_providers, whole

RIGHT = always(whole(b"x."))


def der(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


def expected_pin(certificate: bytes) -> str:
    key = x509.load_der_x509_certificate(certificate).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(info).digest()).decode()


@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_a_pin_is_what_others_make_of_it(kind: trustme.KeyType) -> None:
    certificate = der(trustme.CA(key_type=kind).issue_cert("provider.test", key_type=kind))
    assert pin_of(certificate) == expected_pin(certificate)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_are_too_strange(junk: bytes, cut: int) -> None:
    for data in (junk, CERTIFICATE[:cut], CERTIFICATE[:cut] + junk):
        try:
            public_key_info(data)
        except ValueError:
            continue


CERTIFICATE = der(trustme.CA().issue_cert("provider.test"))


def issue(ca: trustme.CA) -> tuple[trustme.LeafCert, ssl.SSLContext]:
    leaf = ca.issue_cert("127.0.0.1", "provider.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    return leaf, context


async def test_a_pinned_key(ca: trustme.CA, ca_file: Path) -> None:
    leaf, context = issue(ca)
    right, wrong = pin_of(der(leaf)), "sha256/" + base64.b64encode(bytes(32)).decode()
    for pins in ((right,), (wrong, right)):
        async with bench(RIGHT, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(pin=pins)) as b:
            assert await b.ask(stream=False) == [Text("x."), End()]
    async with bench(RIGHT, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(pin=(wrong,))) as b:
        error = await b.fault()
        assert error.slug == "provider_error.unreachable"
        assert "pinned" in error.message
        assert not error.sent
        assert b.peer.seen == [], "the key never left"


async def test_a_pin_does_not_replace_verification(ca_file: Path) -> None:
    leaf, context = issue(trustme.CA())
    async with bench(RIGHT, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(pin=(pin_of(der(leaf)),))) as b:
        assert "certificate verify failed" in (await b.fault()).message


async def test_another_server_name(ca: trustme.CA, ca_file: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("inner.test").configure_cert(context)
    names: list[str | None] = []
    context.sni_callback = lambda _tls, name, _context: names.append(name)
    async with bench(RIGHT, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(server_name="inner.test")) as b:
        assert await b.ask(stream=False) == [Text("x."), End()]
    assert names == ["inner.test"]
    async with bench(RIGHT, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(server_name="other.test")) as b:
        assert "certificate verify failed" in (await b.fault()).message


async def test_the_gateways_own_certificate(ca: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    _, context = issue(ca)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    own = ca.issue_cert("gateway.internal")
    certificate, key = tmp_path / "own.pem", tmp_path / "own-key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    own.private_key_pem.write_to_path(key)
    who: list[Any] = []

    async def script(talk: Conversation) -> None:
        await talk.request()
        assert isinstance(talk.stream, trio.SSLStream)
        who.append(talk.stream.getpeercert())
        await talk.say(whole(b"x."))
        await talk.gone()

    async with bench(script, context, ca_file=ca_file, provider_tls=ProviderTLSConfig(certificate, key)) as b:
        assert await b.ask(stream=False) == [Text("x."), End()]
    assert who[0]["subjectAltName"] == (("DNS", "gateway.internal"),)


def test_files_that_do_not_fit(ca_file: Path) -> None:
    with pytest.raises(ConfigError, match="certificate and key can not be used together"):
        make_providers("https://127.0.0.1", tls=ProviderTLSConfig(ca_file, ca_file))
