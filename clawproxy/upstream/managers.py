"""Secrets of HashiCorp Vault and of AWS Secrets Manager, over their HTTP APIs. Where they are and who asks is in the variables
that their own tools read.

Vault: `VAULT_ADDR`, `VAULT_TOKEN` (or `VAULT_TOKEN_FILE`), `VAULT_NAMESPACE`, `VAULT_CACERT`. `PATH` is the API's own, so that of
version 2 of the key-value engine has `data` in it: `vault:secret/data/openai#api_key`.
AWS: `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ENDPOINT_URL_SECRETS_MANAGER`. There is
no look-up of an instance's role: on a machine that has one, use `command:`.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from clawproxy.fetch import Fetched, FetchError, fetch
from clawproxy.upstream.fetched import credential, decoded, field_of
from clawproxy.upstream.oauth import lasting
from clawproxy.upstream.renewal import Obtained, Unobtainable

_REFUSED: Final = frozenset({400, 401, 403, 404})


async def from_vault(value: str) -> Obtained:
    """Raises Unobtainable."""
    path, _, field = value.partition("#")
    headers = [("x-vault-token", _vault_token()), ("x-vault-request", "true")]
    if namespace := os.environ.get("VAULT_NAMESPACE"):
        headers.append(("x-vault-namespace", namespace))
    ca_file = os.environ.get("VAULT_CACERT")
    url = f"{_variable('VAULT_ADDR').rstrip('/')}/v1/{quote(path)}"
    answer = await _fetched(url, headers, None, "Vault", Path(ca_file) if ca_file else None)
    said = decoded(answer.body)
    data = said.get("data") if isinstance(said, dict) else None
    if isinstance(data, dict) and isinstance(data.get("data"), dict) and "metadata" in data:
        return Obtained(field_of(data["data"], field))  # version 2: without an end of its own
    return Obtained(field_of(data, field), lasting(said.get("lease_duration")))


def _vault_token() -> str:
    """An agent's sink is a file that changes: it is read each time."""
    file = os.environ.get("VAULT_TOKEN_FILE")
    if not file:
        return _variable("VAULT_TOKEN")
    try:
        return Path(file).read_text("ascii").strip()
    except (OSError, ValueError):
        raise Unobtainable("VAULT_TOKEN_FILE can not be read") from None


async def from_aws(value: str) -> Obtained:
    """Raises Unobtainable."""
    name, _, field = value.partition("#")
    region = os.environ.get("AWS_REGION") or _variable("AWS_DEFAULT_REGION")
    url = os.environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or f"https://secretsmanager.{region}.amazonaws.com"
    body = msgspec.json.encode({"SecretId": name})
    fields = {
        "content-type": "application/x-amz-json-1.1",
        "host": urlsplit(url).netloc,
        "x-amz-date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ"),
        "x-amz-target": "secretsmanager.GetSecretValue",
    }
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        fields["x-amz-security-token"] = token
    signature = signed(
        "POST", "/", fields, body, region, "secretsmanager", _variable("AWS_ACCESS_KEY_ID"), _variable("AWS_SECRET_ACCESS_KEY")
    )
    headers = [*((key, text) for key, text in fields.items() if key != "host"), ("authorization", signature)]
    said = decoded((await _fetched(url.rstrip("/") + "/", headers, body, "AWS Secrets Manager", None)).body)
    secret = said.get("SecretString") if isinstance(said, dict) else None
    if not isinstance(secret, str):
        raise Unobtainable("what came holds no SecretString", final=True)
    return Obtained(field_of(decoded(secret), field) if field else credential(secret))


def signed(
    method: str, path: str, fields: Mapping[str, str], body: bytes, region: str, service: str, key_id: str, key: str
) -> str:
    """The Authorization of Signature Version 4. `fields`: lower-case names, `host` and `x-amz-date` among them."""
    names = ";".join(sorted(fields))
    lines = [f"{name}:{' '.join(fields[name].split())}" for name in sorted(fields)]
    canonical = "\n".join([method, path, "", *lines, "", names, hashlib.sha256(body).hexdigest()])
    date = fields["x-amz-date"]
    scope = f"{date[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    made = f"AWS4{key}".encode()
    for part in scope.split("/"):
        made = hmac.digest(made, part.encode(), hashlib.sha256)
    signature = hmac.digest(made, text.encode(), hashlib.sha256).hex()
    return f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"


async def _fetched(url: str, headers: list[tuple[str, str]], body: bytes | None, who: str, ca_file: Path | None) -> Fetched:
    try:
        answer = await fetch(url, method="GET" if body is None else "POST", headers=headers, body=body, ca_file=ca_file)
    except FetchError as error:
        raise Unobtainable(f"{who}: {error}") from None
    if answer.status != 200:
        raise Unobtainable(f"{who} answered {answer.status}", final=answer.status in _REFUSED)
    return answer


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise Unobtainable(f"{name} is not set", final=True)
    return value
