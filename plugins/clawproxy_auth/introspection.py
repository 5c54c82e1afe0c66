"""Opaque tokens that an authorization server vouches for: OAuth 2.0 Token Introspection (RFC 7662).

Rule 1: it is asked last, only for what no key and no issuer knows, and at most `MOST_AT_ONCE` times at once: beyond that a
        token is refused as `overloaded`, not let in.
Rule 2: a server that can not be asked, or does not answer within `SECONDS`, lets nobody in.
Rule 3: its verdict is used for what the gateway caches a verdict for, three seconds.
"""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
from attrs import field, frozen, validators

from clawproxy.config import SecretRef
from clawproxy.errors import ClawError
from clawproxy.fetch import FetchError, fetch
from clawproxy.messages import Principal
from clawproxy.secrets import Secret
from clawproxy_auth.issuers import IssuerSettings, principal_of

log = logging.getLogger("clawproxy.auth")

MOST_AT_ONCE: Final = 64
SECONDS: Final = 4.0
"""Less than what the gateway gives a plugin for its verdict: a slow server is `overloaded`, and no defect."""
_MOST_ANSWER: Final = 64 * 1024


@frozen
class IntrospectionSettings:
    """`[plugins.auth.introspection]`."""

    url: str
    client_id: str
    client_secret: SecretRef
    issuer: str | None = None
    """What `iss` must be, where the answer has one."""
    audiences: tuple[str, ...] = ()
    """One of which `aud` must name; all tokens of the server, where not given."""
    key: str = field(default="introspected", validator=validators.min_len(1))
    """What its tokens' requests are booked under."""
    user: str = "sub"
    team: str | None = None
    app: str | None = "client_id"
    roles: str | None = "scope"
    models: tuple[str, ...] = ("*",)
    tags: tuple[str, ...] = ()
    ca_file: Path | None = None
    grants: tuple[str, ...] = ()
    """Roles that each of its tokens has, beside those it names."""


class Introspection:
    """One generation's."""

    def __init__(self, settings: IntrospectionSettings, secret: Secret) -> None:
        self.settings = settings
        self._secret = secret
        self._asking = 0

    async def principal(self, token: str) -> Principal | None:
        """None where the server does not vouch for it. Raises ClawError: overloaded, auth.expired."""
        if self._asking >= MOST_AT_ONCE:
            raise ClawError("overloaded", retry_after_ms=1000)
        self._asking += 1
        try:
            said = await self._ask(token)
        except FetchError as error:
            log.error("auth: the introspection endpoint could not be asked: %s", error)
            raise ClawError("overloaded", "Credentials can not be checked at the moment.", retry_after_ms=1000) from None
        finally:
            self._asking -= 1
        if said.get("active") is not True:
            return None
        own = self.settings
        if own.issuer is not None and said.get("iss", own.issuer) != own.issuer:
            return None
        seen = IssuerSettings(
            own.issuer or "-", own.audiences or ("-",), user=own.user, team=own.team, app=own.app, roles=own.roles,
            models=own.models, tags=own.tags, grants=own.grants,
        )  # fmt: skip
        claims = {"exp": 9e10, **said, "iss": seen.issuer}
        if not own.audiences:
            claims["aud"] = "-"
        return principal_of(own.key, seen, claims)

    async def _ask(self, token: str) -> dict[str, Any]:
        own = self.settings
        # RFC 6749, 2.3.1: both are form-encoded before they are joined.
        pair = f"{quote(own.client_id, safe='')}:{quote(self._secret.reveal(), safe='')}"
        headers = [
            ("authorization", "Basic " + base64.b64encode(pair.encode()).decode()),
            ("content-type", "application/x-www-form-urlencoded"),
            ("accept", "application/json"),
        ]
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        answer = await fetch(
            own.url, method="POST", headers=headers, body=body, limit=_MOST_ANSWER, seconds=SECONDS, ca_file=own.ca_file
        )
        if answer.status != 200:
            raise FetchError(f"status {answer.status}")
        try:
            return msgspec.json.decode(answer.body, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise FetchError("its answer is not JSON") from None
