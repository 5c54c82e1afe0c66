"""TLS towards clients: client certificates as credentials, names and their certificates, and what is not spoken (A19)."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clawproxy.clocks import Deadlines
from clawproxy.config import KeyConfig, SecretRef, ServerConfig, TLSConfig, TLSNameConfig
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat_body, fetch
from tests.e2e.websocket_client import Frames, masked, open_raw

OTHER = "sk-test-another-0123456789abcdefghij"
AUTHORITY = trustme.CA()
"""Of the gateway's own certificates."""
CLIENTS = trustme.CA()
STRANGERS = trustme.CA()
ASK = {"type": "llm_request", "id": "r", "model": "test-model", "prompt": "script: tokens 4"}


def written(folder: Path, name: str, issued: trustme.LeafCert) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return certificate, key


def server_of(tmp_path: Path, **changes: Any) -> ServerConfig:
    certificate, key = written(tmp_path, "default", AUTHORITY.issue_cert("127.0.0.1", "localhost"))
    tls = TLSConfig(certificate, key)
    if changes.get("client_auth", "none") != "none":
        changes["client_ca"] = tmp_path / "clients.pem"
        CLIENTS.cert_pem.write_to_path(changes["client_ca"])
    return ServerConfig(
        listen=("127.0.0.1:0",), admin="127.0.0.1:0", state_dir=tmp_path / "state", tls=attrs.evolve(tls, **changes)
    )


def client_context(issued: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if issued is not None:
        issued.configure_cert(context)
    return context


def digest_of(issued: trustme.LeafCert) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())).hexdigest()


ALICE = CLIENTS.issue_cert("alice.internal", common_name="alice")
BOB = CLIENTS.issue_cert("bob.internal")
NOBODY = CLIENTS.issue_cert("nobody.internal")
BOTH = CLIENTS.issue_cert("alice.internal", "bob.internal")
STRANGER = STRANGERS.issue_cert("alice.internal", common_name="alice")
KEYS = {
    "alice": KeyConfig(SecretRef("", KEY), certificates=("san:alice.internal", "cn:alice")),
    "bob": KeyConfig(certificates=("san:bob.internal",)),
    "token": KeyConfig(SecretRef("", OTHER)),
    "pinned": KeyConfig(certificates=(f"sha256:{digest_of(NOBODY)}",)),
}


@asynccontextmanager
async def talking(running: Running, issued: trustme.LeafCert | None, **options: Any) -> AsyncIterator[trio.SSLStream[Any]]:
    context = options.pop("context", None) or client_context(issued)
    with trio.fail_after(5):
        stream = await trio.open_ssl_over_tcp_stream(*running.address, ssl_context=context, https_compatible=True, **options)
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


async def ask(running: Running, issued: trustme.LeafCert | None, token: str | None = None) -> Reply:
    async with talking(running, issued) as stream:
        fields = {} if token is None else {"authorization": f"Bearer {token}"}
        return await fetch(stream, "GET", "/v1/me", headers=fields)


async def test_a_certificate_is_a_credential(tmp_path: Path) -> None:
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="optional"), keys=KEYS) as running:
        for issued, token, status, who in (
            (ALICE, None, 200, "alice"),
            (BOB, None, 200, "bob"),
            (NOBODY, None, 200, "pinned"),
            (ALICE, KEY, 200, "alice"),
            (ALICE, OTHER, 400, "auth.ambiguous"),
            (BOB, KEY, 400, "auth.ambiguous"),
            (ALICE, "sk-wrong-0123456789abcdef", 401, "auth.invalid"),
            (BOTH, None, 400, "auth.ambiguous"),
            (None, None, 401, "auth.missing"),
            (None, KEY, 200, "alice"),
            (CLIENTS.issue_cert("other.internal"), None, 401, "auth.missing"),
            (CLIENTS.issue_cert("other.internal"), OTHER, 200, "token"),
        ):
            reply = await ask(running, issued, token)
            assert reply.status == status, (who, reply.body)
            if status == 200:
                assert who.encode() in reply.body
        async with talking(running, BOB) as stream:
            fields = {"content-type": "application/json"}
            for _ in range(3):
                reply = await fetch(stream, "POST", "/v1/chat/completions", headers=fields, body=chat_body("hello"))
                assert reply.status == 200
        await running.at_rest()
        store = running.server.gateway.app.store
        await store.flush()
        assert {row.opened.key for row in await store.rows()} == {"bob"}


def naming(*names: x509.GeneralName) -> trustme.LeafCert:
    """A client's certificate with names of any kind: `trustme` itself makes kinds of their forms."""
    signer = serialization.load_pem_private_key(CLIENTS.private_key_pem.bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    authority, now = x509.load_pem_x509_certificate(CLIENTS.cert_pem.bytes()), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return trustme.LeafCert(private, made.public_bytes(pem), [])


async def test_kinds_of_names_are_told_apart(tmp_path: Path) -> None:
    """An authority that lets its clients choose a URI or a mail address has vouched for no host name of the same letters."""
    dns, uri, email, ip = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name, x509.IPAddress
    identities = {
        "host": ("san:host.internal", "san:dns:Other.Internal"),
        "mesh": ("san:spiffe://mesh/ns/a", "san:uri:urn:b"),
        "mail": ("san:ann@example.com", "san:email:Ben@example.com"),
        "address": ("san:2001:db8::1", "san:ip:192.0.2.7"),
    }
    keys = {name: KeyConfig(certificates=each) for name, each in identities.items()}
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="optional"), keys=keys) as running:
        for name, who in (
            (dns("HOST.internal"), "host"),
            (dns("other.internal"), "host"),
            (uri("host.internal"), None),
            (email("host.internal"), None),
            (dns("dns:host.internal"), None),
            (uri("spiffe://mesh/ns/a"), "mesh"),
            (uri("urn:b"), "mesh"),
            (dns("spiffe://mesh/ns/a"), None),
            (email("ann@example.com"), "mail"),
            (email("Ben@example.com"), "mail"),
            (uri("ann@example.com"), None),
            (dns("ann@example.com"), None),
            (ip(ipaddress.ip_address("2001:db8::1")), "address"),
            (ip(ipaddress.ip_address("192.0.2.7")), "address"),
            (dns("192.0.2.7"), None),
        ):
            reply = await ask(running, naming(name))
            assert (reply.status, reply.json().get("key")) == ((200, who) if who else (401, None)), name


async def test_the_verdict_on_a_token_is_kept_for_the_certificate_it_came_with(tmp_path: Path) -> None:
    """Within the five seconds for which verdicts are kept: nobody gets the one of another certificate, or of none."""
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="optional"), keys=KEYS) as running:
        for _ in range(2):
            assert (await ask(running, None, OTHER)).status == 200
            assert (await ask(running, ALICE, OTHER)).status == 400
            assert (await ask(running, ALICE)).status == 200
            assert (await ask(running, None)).status == 401
            assert (await ask(running, BOB)).status == 200
            assert (await ask(running, BOTH)).status == 400


async def refused(running: Running, issued: trustme.LeafCert | None) -> bool:
    try:
        return (await ask(running, issued, KEY)).status == 0
    except trio.BrokenResourceError:
        return True


async def test_a_certificate_that_must_be_shown(tmp_path: Path) -> None:
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="required"), keys=KEYS) as running:
        assert await refused(running, None)
        assert await refused(running, STRANGER)
        assert (await ask(running, ALICE)).status == 200


async def test_a_stranger_may_not_even_try(tmp_path: Path) -> None:
    """`optional` is about showing one: one that is shown must be good."""
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="optional"), keys=KEYS) as running:
        assert await refused(running, STRANGER)
        assert await refused(running, CLIENTS.issue_cert("alice.internal", not_after=_past()))
        assert (await ask(running, ALICE)).status == 200


async def test_without_client_auth_no_certificate_is_asked_for(tmp_path: Path) -> None:
    async with gateway(tmp_path, server=server_of(tmp_path), keys={"alice": KEYS["alice"]}) as running:
        assert (await ask(running, ALICE)).status == 401
        assert (await ask(running, ALICE, KEY)).status == 200


def _past() -> Any:
    import datetime

    return datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)


# --- WebSocket ----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def socket(running: Running, issued: trustme.LeafCert, token: str | None = None) -> AsyncIterator[tuple[Any, Frames]]:
    async with talking(running, issued) as stream:
        yield stream, Frames(stream, await open_raw(stream, token))


async def test_a_websocket_is_authenticated_by_its_certificate_at_once(tmp_path: Path) -> None:
    auth = masked(json.dumps({"type": "auth", "token": OTHER}).encode())
    async with gateway(tmp_path, server=server_of(tmp_path, client_auth="optional"), keys=KEYS) as running:
        async with socket(running, BOB) as (stream, frames):
            assert (await frames.next())["type"] == "auth_ok"
            await stream.send_all(masked(json.dumps(ASK).encode()))
            while (said := await frames.next())["type"] != "llm_response_end":
                assert "error" not in said["type"], said
            await stream.send_all(auth)  # another key's
            assert "auth.ambiguous" in json.dumps(await frames.next())
            with pytest.raises(EOFError):
                await frames.next()
        async with socket(running, CLIENTS.issue_cert("other.internal")) as (stream, frames):
            await stream.send_all(auth)  # a certificate that is no key is as good as none
            assert (await frames.next())["type"] == "auth_ok"
        for issued, token in ((BOTH, None), (BOB, OTHER)):
            async with socket(running, issued, token) as (_, frames):
                assert "auth.ambiguous" in json.dumps(await frames.next())


# --- names, protocol ------------------------------------------------------------------------------------------------------------


def names_of(stream: trio.SSLStream[Any]) -> set[str]:
    return {text for _, text in stream.getpeercert()["subjectAltName"]}


async def test_a_certificate_for_each_name(tmp_path: Path) -> None:
    one = TLSNameConfig(("One.test",), *written(tmp_path, "one", AUTHORITY.issue_cert("one.test")))
    both = ("*.wild.test", "wild.test")
    wild = TLSNameConfig(both, *written(tmp_path, "wild", AUTHORITY.issue_cert(*both)))
    server = server_of(tmp_path, client_auth="optional", names=(one, wild))
    async with gateway(tmp_path, server=server, keys=KEYS) as running:
        for name, expected in (
            ("one.test", {"one.test"}),
            ("ONE.TEST", {"one.test"}),
            ("a.wild.test", {"*.wild.test", "wild.test"}),
            ("wild.test", {"*.wild.test", "wild.test"}),
            ("a.b.wild.test", {"127.0.0.1", "localhost"}),
            ("unknown.test", {"127.0.0.1", "localhost"}),
            (None, {"127.0.0.1", "localhost"}),
        ):
            context = client_context(ALICE)
            context.check_hostname = False
            stream = trio.SSLStream(await running.connect(), context, server_hostname=name, https_compatible=True)
            with trio.fail_after(5):
                await stream.do_handshake()
                assert names_of(stream) == expected, name
                assert (await fetch(stream, "GET", "/v1/me")).status == 200, "asked for under every name"
            await trio.aclose_forcefully(stream)


async def test_what_is_spoken(tmp_path: Path) -> None:
    async with gateway(tmp_path, server=server_of(tmp_path)) as running:
        context = client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with talking(running, None, context=context) as stream:
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "http/1.1"
            assert stream.version() == "TLSv1.3"
            assert stream.compression() is None
        for ciphers, good in (("ECDHE+AESGCM", True), ("AES128-SHA", False), ("ECDHE-RSA-AES128-SHA256", False)):
            context = client_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
            async with talking(running, None, context=context) as stream:
                if good:
                    await stream.do_handshake()
                    continue
                with pytest.raises(trio.BrokenResourceError):
                    await stream.do_handshake()
        context = client_context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
        async with talking(running, None, context=context) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()


# --- reload -----------------------------------------------------------------------------------------------------------------


async def test_files_that_change_while_it_runs(tmp_path: Path) -> None:
    """Another certificate for a name, another authority of clients: from the next connection on, and open ones go on."""
    one = TLSNameConfig(("one.test",), *written(tmp_path, "one", AUTHORITY.issue_cert("one.test")))
    server = server_of(tmp_path, client_auth="optional", names=(one,))
    tls = server.tls
    assert tls is not None
    assert tls.client_ca is not None
    async with gateway(tmp_path, server=server, keys=KEYS, path=tmp_path / "claw.toml") as running:
        (tmp_path / "claw.toml").write_text(f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{tmp_path}/state"
[server.tls]
certificate = "{tls.certificate}"
key = "{tls.key}"
client_ca = "{tls.client_ca}"
client_auth = "optional"
names = [{{ hosts = ["one.test"], certificate = "{one.certificate}", key = "{one.key}" }}]
[providers.scripted]
base_url = "{running.provider.base_url}"
[keys.alice]
certificates = ["san:alice.internal"]
""")

        async def named() -> set[str]:
            stream = trio.SSLStream(await running.connect(), client_context(), server_hostname="one.test", https_compatible=True)
            with trio.fail_after(5):
                await stream.do_handshake()
                found = names_of(stream)
                await trio.aclose_forcefully(stream)
            return found

        assert await named() == {"one.test"}
        async with talking(running, ALICE) as stream:
            assert (await fetch(stream, "GET", "/v1/me")).status == 200
            written(tmp_path, "one", AUTHORITY.issue_cert("one.test", "uno.test"))
            STRANGERS.cert_pem.write_to_path(str(tls.client_ca))
            assert await running.server.reloader.reload("test"), running.server.gateway.reload_problems
            assert await named() == {"one.test", "uno.test"}
            assert await refused(running, ALICE)
            assert (await ask(running, STRANGER)).status == 200
            assert (await fetch(stream, "GET", "/v1/me")).status == 200
        tls.client_ca.write_text("nothing")
        assert not await running.server.reloader.reload("test")
        assert "client_ca" in "".join(running.server.gateway.reload_problems)
        assert (await ask(running, STRANGER)).status == 200


async def test_a_slow_websocket_with_a_certificate_is_cut_and_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its address goes into the log as an address."""
    clocks = Deadlines(idle_ws=0.2)
    server = server_of(tmp_path, client_auth="optional")
    async with gateway(tmp_path, server=server, keys=KEYS, deadlines=clocks) as running:
        async with socket(running, BOB) as (_, frames):
            assert (await frames.next())["type"] == "auth_ok"
            assert "timeout.idle" in json.dumps(await frames.next())
        async with socket(running, BOB) as (_, frames):
            assert (await frames.next())["type"] == "auth_ok"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    [cut] = [line for line in lines if line["event"] == "connection.cut"]
    assert cut["peer"] == "127.0.0.1"
