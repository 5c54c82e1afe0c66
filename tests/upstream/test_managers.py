"""Vault and AWS Secrets Manager, as far as their public documentation says, on a local server (B6)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from clawproxy.config import SecretRef
from clawproxy.upstream.fetched import obtaining
from clawproxy.upstream.managers import from_aws, from_vault, signed
from clawproxy.upstream.renewal import Obtained, Unobtainable
from tests.e2e.test_provider_credentials import Request, serving

VECTOR = (
    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, "
    "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
)


def test_the_signature_of_the_published_example() -> None:
    """`get-vanilla` of AWS's test suite for Signature Version 4."""
    fields = {"host": "example.amazonaws.com", "x-amz-date": "20150830T123600Z"}
    key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    assert signed("GET", "/", fields, b"", "us-east-1", "service", "AKIDEXAMPLE", key) == VECTOR


async def fetched(
    value: str, said: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], status: int = 200
) -> tuple[Obtained | Unobtainable, Request]:
    """What is obtained from a server that says `said`, or why it is not, and what it was asked."""
    seen: list[Request] = []

    async def answer(request: Request) -> tuple[int, Any]:
        await trio.lowlevel.checkpoint()
        seen.append(request)
        return status, said

    scheme, _, _ = value.partition(":")
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    async with serving(answer) as url:
        monkeypatch.setenv("VAULT_ADDR" if scheme == "vault" else "AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
        obtain = obtaining(SecretRef.parse(value))
        assert obtain is not None
        try:
            made: Obtained | Unobtainable = await obtain()
        except Unobtainable as error:
            made = error
    return made, seen[0]


@pytest.mark.parametrize(
    ("said", "lasts"),
    [
        ({"data": {"data": {"api_key": "sk-in-vault"}, "metadata": {"version": 3}}, "lease_duration": 0}, float("inf")),
        ({"data": {"api_key": "sk-in-vault"}, "lease_duration": 3600}, 3600.0),
    ],
)
async def test_vault(said: Any, lasts: float, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"VAULT_TOKEN": "hvs.token", "VAULT_NAMESPACE": "team"}
    made, asked = await fetched("vault:secret/data/open ai#api_key", said, monkeypatch, variables)
    assert isinstance(made, Obtained)
    assert (made.secret.reveal(), made.lasts) == ("sk-in-vault", lasts)
    assert (asked.method, asked.path) == ("GET", "/v1/secret/data/open%20ai")
    assert asked.headers["x-vault-token"] == "hvs.token"
    assert asked.headers["x-vault-namespace"] == "team"


@pytest.mark.parametrize(
    ("value", "said"), [("aws:prod/openai#key", json.dumps({"key": "sk-in-aws", "other": 1})), ("aws:prod/openai", "sk-in-aws")]
)
async def test_aws(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    made, asked = await fetched(value, {"SecretString": said}, monkeypatch, variables)
    assert isinstance(made, Obtained)
    assert made.secret.reveal() == "sk-in-aws"
    assert asked.headers["x-amz-target"] == "secretsmanager.GetSecretValue"
    assert json.loads(asked.body) == {"SecretId": "prod/openai"}
    names = ("content-type", "host", "x-amz-date", "x-amz-security-token", "x-amz-target")
    fields = {name: asked.headers[name] for name in names}
    assert asked.headers["authorization"] == signed("POST", "/", fields, asked.body, "eu-west-1", "secretsmanager", "AKID", "s")


@pytest.mark.parametrize(
    ("said", "status", "why", "final"),
    [
        ({"errors": ["permission denied CANARY"]}, 403, "Vault answered 403", True),
        ({"errors": ["sealed CANARY"]}, 503, "Vault answered 503", False),
        (b"CANARY", 200, "not JSON", False),
        ({"data": {"other": "CANARY"}}, 200, "no such field", True),
        ({"data": None}, 200, "no such field", True),
        ([1], 200, "no such field", True),
        ({"data": {"k": "CANARY\nCANARY"}}, 200, "characters no header may carry", False),
        (b"[" * 5000, 200, "not JSON", False),
    ],
)
async def test_what_brings_nothing(said: Any, status: int, why: str, final: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    error, _ = await fetched("vault:kv/x#k", said, monkeypatch, {"VAULT_TOKEN": "t"}, status)
    assert isinstance(error, Unobtainable)
    assert why in str(error)
    assert "CANARY" not in str(error)
    assert error.final is final


async def test_who_does_not_say_where_or_who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_ADDR", "VAULT_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unobtainable, match="VAULT_TOKEN is not set"):
        await from_vault("a#b")
    monkeypatch.setenv("VAULT_TOKEN_FILE", "/nowhere/at/all")
    with pytest.raises(Unobtainable, match="VAULT_TOKEN_FILE can not be read"):
        await from_vault("a#b")
    with pytest.raises(Unobtainable, match="AWS_DEFAULT_REGION is not set"):
        await from_aws("a#b")
