"""Opaque tokens that an authorization server vouches for: OAuth 2.0 Token Introspection (RFC 7662).

Rule 1: it is asked last, only for what no key and no issuer knows, and at most `places.MOST_AT_ONCE` times at once: who finds no
        place there, or has to give it up, is refused as `overloaded`, not let in.
Rule 2: whoever shows the same token meanwhile waits for the same answer. A question that nobody waits for any more is given up.
Rule 3: a server that can not be asked, or does not answer within `SECONDS`, lets nobody in.
Rule 4: its yes is used for what the gateway caches a verdict for, three seconds; its no as long (`REFUSED`).
"""

from __future__ import annotations

import base64
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
import trio
from attrs import define, field, frozen, validators

from clawproxy.config import SecretRef
from clawproxy.errors import ClawError
from clawproxy.fetch import FetchError, fetch
from clawproxy.keys import looks_generated
from clawproxy.messages import Principal
from clawproxy.secrets import Secret
from clawproxy_auth.issuers import IssuerSettings, principal_of
from clawproxy_auth.places import Place, Places

log = logging.getLogger("clawproxy.auth")

SECONDS: Final = 4.0
"""Less than what the gateway gives a plugin for its verdict: a slow server is `overloaded`, and no defect."""
REFUSED: Final = 3.0
"""Seconds for which a token that it did not vouch for is not asked for again."""
MOST_REFUSED: Final = 10_000
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


@define(eq=False)
class _Question:
    """One, for all who show its token."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)
    waiting: int = 0
    said: dict[str, Any] | None = None
    """None: the server could not be asked."""


class Introspection:
    """One generation's."""

    def __init__(self, settings: IntrospectionSettings, secret: Secret, nursery: trio.Nursery | None = None) -> None:
        """Args: nursery: the service's; without it a question is the task's that asks it first."""
        self.settings = settings
        self._secret = secret
        self._nursery = nursery
        self._open: dict[bytes, _Question] = {}
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        """When a token may be asked for again."""

    async def principal(self, token: str, mark: bytes, peer: str, places: Places) -> Principal | None:
        """None where the server does not vouch for it. Raises ClawError: overloaded, auth.expired, auth.invalid.

        Args: mark: the token's digest.
        """
        if looks_generated(token) or trio.current_time() < self._refused.get(mark, 0.0):
            return None  # a gateway's key is no other server's to see
        said = await self._answer(token, mark, peer, places)
        if said is None:
            raise ClawError("overloaded", "Credentials can not be checked at the moment.", retry_after_ms=1000)
        active = said.get("active") is True
        found = self._whose(said) if active else None
        places.vouched(mark, found is not None)
        if not active:
            self._refused[mark] = trio.current_time() + REFUSED
            if len(self._refused) > MOST_REFUSED:
                self._refused.popitem(last=False)
        return found

    def _whose(self, said: dict[str, Any]) -> Principal | None:
        """Raises ClawError: auth.expired, auth.invalid."""
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

    async def _answer(self, token: str, mark: bytes, peer: str, places: Places) -> dict[str, Any] | None:
        """Of the question that is open for it, or of a new one. Raises ClawError: overloaded."""
        question = self._open.get(mark)
        if question is None:
            question = _Question()
            place = places.take(mark, peer, question.scope.cancel)
            if place is None:
                raise ClawError("overloaded", retry_after_ms=1000)
            self._open[mark] = question
            if self._nursery is None:
                await self._put(question, token, mark, place, places)
            else:
                self._nursery.start_soon(self._put, question, token, mark, place, places)
        question.waiting += 1
        try:
            await question.over.wait()
        finally:
            question.waiting -= 1
            if not question.waiting:
                self._close(question, mark)
                question.scope.cancel()
        return question.said

    async def _put(self, question: _Question, token: str, mark: bytes, place: Place, places: Places) -> None:
        """Raises nothing: what could not be asked is logged."""
        try:
            with question.scope:
                question.said = await self._ask(token)
        except FetchError as error:
            log.error("auth: the introspection endpoint could not be asked: %s", error)
        except Exception:  # a defect: as harmless as a server that is down
            log.exception("auth: asking the introspection endpoint crashed")
        finally:
            places.leave(place)
            self._close(question, mark)
            question.over.set()

    def _close(self, question: _Question, mark: bytes) -> None:
        """From now on the token is asked for anew."""
        if self._open.get(mark) is question:
            del self._open[mark]

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
