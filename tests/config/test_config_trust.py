"""What an operator may write about TLS, certificates of clients, and a provider's credentials (A19, B5, B6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme
from attrs import define, field

from clawproxy.config.load import load
from clawproxy.config.schema import Duration, OAuthConfig, ProviderTLSConfig, SecretRef
from clawproxy.config.secretrefs import files_read, resolve_secret
from clawproxy.errors import ConfigError
from tests.config.files import PLUGINS, loaded, problems

PROVIDER = '[providers.p]\nbase_url = "https://provider.test/v1"\n'
KEY = '[keys.k]\nsecret = "env:K"\n'
PIN = "sha256/" + "A" * 43 + "="


@pytest.fixture
def pair(tmp_path: Path) -> str:
    leaf = trustme.CA().issue_cert("gateway.test")
    (tmp_path / "c.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    return 'certificate = "c.pem"\nkey = "k.pem"\n'


def test_all_of_it(tmp_path: Path, pair: str) -> None:
    oauth = 'oauth = { token_url = "https://login.test/t", client_id = "c", client_secret = "file:secret", scope = "s" }'
    config = loaded(
        tmp_path,
        f'[server.tls]\n{pair}client_ca = "c.pem"\nclient_auth = "optional"\n'
        f'[[server.tls.names]]\nhosts = ["api.test", "*.api.test"]\n{pair}'
        f'{PROVIDER}refresh = "45m"\n{oauth}\n'
        f'tls = {{ certificate = "c.pem", key = "k.pem", pin = "{PIN}", server_name = "inner.test" }}\n'
        f'[keys.k]\ncertificates = ["sha256:{"a" * 64}", "san:spiffe://mesh/app", "cn:app"]\n',
    ).config
    provider, tls = config.providers["p"], config.server.tls
    assert isinstance(provider.oauth, OAuthConfig)
    assert provider.refresh == Duration(2700.0)
    assert provider.tls == ProviderTLSConfig(tmp_path / "c.pem", tmp_path / "k.pem", (PIN,), "inner.test")
    assert provider.credentials == (SecretRef("oauth", "c https://login.test/t"),)
    assert tls is not None
    assert tls.names[0].hosts == ("api.test", "*.api.test")
    assert config.keys["k"].secret is None
    assert config.keys["k"].certificates == (f"sha256:{'a' * 64}", "san:uri:spiffe://mesh/app", "cn:app")
    assert files_read(config) == {tmp_path / name for name in ("c.pem", "k.pem", "secret", "claw.toml")}


@define
class Inner:
    secret: SecretRef
    more: tuple[SecretRef, ...] = ()
    by_name: Mapping[str, SecretRef] = field(factory=dict)


@define
class Section:
    inner: Inner | None = None
    several: Mapping[str, Inner] = field(factory=dict)
    own: object = field(init=False, factory=lambda: SecretRef("file", "/none"))


def test_files_that_plugins_sections_name_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(
        '[plugins.x.inner]\nsecret = "file:a"\nmore = ["file:b", "env:B"]\nby_name.n = "file:c"\n'
        '[plugins.x.several.s]\nsecret = "file:d"\n'
    )
    found = load(tmp_path / "claw.toml", settings={**PLUGINS.settings, "x": Section}, environ={})
    assert files_read(found.config, found.settings) == {tmp_path / name for name in ("a", "b", "c", "d", "claw.toml")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('client_auth = "optional"', "server.tls.client_ca: is missing: without it no client certificate can be checked"),
        ('client_ca = "c.pem"', "server.tls.client_ca: has no effect; set client_auth"),
        ('client_ca = "k.pem"\nclient_auth = "required"', "server.tls.client_ca: holds no PEM certificate"),
        ('client_auth = "perhaps"', "server.tls.client_auth: "),
        ('[[server.tls.names]]\nhosts = []\ncertificate = "c.pem"\nkey = "k.pem"', "server.tls.names[0].hosts: is empty"),
        ('[[server.tls.names]]\nhosts = ["a b"]\ncertificate = "c.pem"\nkey = "k.pem"', "is no host name"),
        ('[[server.tls.names]]\nhosts = ["a", "A"]\ncertificate = "c.pem"\nkey = "k.pem"', "has a certificate already"),
        ('[[server.tls.names]]\nhosts = ["a"]\ncertificate = "c.pem"\nkey = "c.pem"', "can not be used together"),
    ],
)
def test_what_is_wrong_with_a_listener(text: str, expected: str, tmp_path: Path, pair: str) -> None:
    [problem] = problems(tmp_path, f"[server.tls]\n{pair}{text}\n")
    assert problem.startswith("claw.toml:")
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models = []", "keys.k.secret: is missing; add `secret = ...` here, or `certificates`"),
        ('certificates = ["cn:x"]', "keys.k.certificates: are never seen"),
    ],
)
def test_what_is_wrong_with_a_key(text: str, expected: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, f"[keys.k]\n{text}\n")
    assert problem.startswith("claw.toml:")
    assert expected in problem


@pytest.mark.parametrize(
    ("certificates", "expected"),
    [
        ('["sha256:AA"]', "is no digest of a certificate"),
        ('["spiffe://x"]', "is no identity"),
        ('["cn:"]', "is no identity"),
        ('["cn:x", "cn:x"]', "is the same as keys.k.certificates[0]"),
        ('["san:A.test", "san:dns:a.test"]', "is the same as keys.k.certificates[0]"),
        ('["san:dns:"]', '"san:dns:" names nothing; write "sha256:HEX", "san:dns:NAME"'),
        ('["san: a.test"]', "is no identity"),
        ('["san:dns:spiffe://x"]', '"spiffe://x" is no DNS name; write "san:uri:spiffe://x"'),
        ('["san:email:a.test"]', '"a.test" is no mail address; write "san:dns:a.test"'),
        ('["san:ip:10.0.0"]', '"10.0.0" is no IP address; write "san:dns:10.0.0"'),
        ('["san:uri:::1"]', '"::1" is no URI; write "san:ip:::1"'),
    ],
)
def test_what_is_wrong_with_an_identity(certificates: str, expected: str, tmp_path: Path, pair: str) -> None:
    server = f'[server.tls]\n{pair}client_ca = "c.pem"\nclient_auth = "optional"\n'
    [problem] = problems(tmp_path, f"{server}[keys.k]\ncertificates = {certificates}\n")
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('tls = { certificate = "c.pem" }', "providers.p.tls.certificate: needs its key; name both"),
        ('tls = { pin = "sha256/short" }', "providers.p.tls.pin: "),
        ('tls = { pin = ["sha1/x", "sha256/y"] }', "providers.p.tls.pin[0]: "),
        ('tls = { server_name = "https://x" }', "providers.p.tls.server_name: "),
        ('oauth = { token_url = "https://l.test", client_id = "c" }', "oauth.client_secret: is missing; add it"),
        ('oauth = { token_url = "http://l.test", client_id = "c", client_secret = "env:S" }', "oauth.token_url: must begin with"),
        ('oauth = { token_url = "nowhere", client_id = "c", client_secret = "env:S" }', "oauth.token_url: is no URL"),
        (
            'api_key = "env:K"\noauth = { token_url = "https://l.test", client_id = "c", client_secret = "env:S" }',
            "providers.p.oauth: stands beside api_key",
        ),
        ('api_key = "env:K"\nrefresh = "5m"', "providers.p.refresh: has no effect"),
        ('api_key = "command:sh"\nrefresh = "10ms"', "providers.p.refresh: is too short"),
        ('api_key = "command:no-such-program-anywhere CANARY"', "providers.p.api_key: names a program that is not there"),
        ('api_key = "command:sh \'CANARY"', "providers.p.api_key: is no command line"),
        ('api_key = "vault:secret/data/x"', "providers.p.api_key: names no field"),
        ('api_keys = ["aws:a#b#c"]', "providers.p.api_keys[0]: has two #"),
    ],
)
def test_what_is_wrong_with_a_provider(text: str, expected: str, tmp_path: Path) -> None:
    found = problems(tmp_path, f"{PROVIDER}{text}\n")
    assert any(expected in problem for problem in found), found
    assert all(problem.startswith("claw.toml:") for problem in found)
    assert "CANARY" not in "".join(found)


def test_tls_without_tls(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, f'[providers.p]\nbase_url = "http://localhost/v1"\ntls = {{ pin = "{PIN}" }}\n')
    assert "providers.p.tls: has no meaning without an https base_url" in problem


def test_what_is_fetched_is_a_providers(tmp_path: Path) -> None:
    """A key or a pepper is read while the gateway starts and reloads: nothing there may take ten seconds."""
    with pytest.raises(ConfigError, match="only for a provider's api_key or api_keys"):
        resolve_secret(SecretRef.parse("command:true"))
    config = loaded(tmp_path, f'{PROVIDER}api_key = "command:true"\n{KEY}')
    assert config.secret_problems(environ={"K": "x" * 30}) == ([], []), "a provider's is not had to check a file"
    config = loaded(tmp_path, '[keys.k]\nsecret = "command:true"\n')
    [problem], _ = config.secret_problems(environ={})
    assert "keys.k.secret: " in problem
