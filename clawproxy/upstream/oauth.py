"""An access token as a provider's credential: OAuth 2.0 (RFC 6749), by client credentials (4.4) or a refresh token (6).

Rule 1: nothing the authorization server writes is logged but an error code of RFC 6749, 5.2.
Rule 2: a refresh token that the server replaces is replaced here, in memory. One that was put where the configuration says is
        taken over when it is read there.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
import trio

from clawproxy.config import OAuthConfig, SecretRef
from clawproxy.fetch import SECONDS, FetchError, fetch
from clawproxy.secrets import Secret
from clawproxy.upstream.renewal import Obtained, Unobtainable

MOST: Final = 64 * 1024
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,32768}")
_CODES: Final = frozenset(
    ("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope")
)


class OAuth:
    """Obtains tokens for one provider."""

    def __init__(self, settings: OAuthConfig, resolve: Callable[[SecretRef], Secret]) -> None:
        """`resolve` raises LookupError."""
        self._settings = settings
        self._resolve = resolve
        self._configured: Secret | None = None
        self._refresh: Secret | None = None

    async def __call__(self) -> Obtained:
        """Raises Unobtainable."""
        own = self._settings
        headers = [("accept", "application/json"), ("content-type", "application/x-www-form-urlencoded")]
        form = {"grant_type": "client_credentials"}
        refresh = self._refresh_token()
        if refresh is not None:
            form = {"grant_type": "refresh_token", "refresh_token": refresh.reveal()}
        form |= {name: value for name in ("scope", "audience") if (value := getattr(own, name)) is not None}
        secret = self._read(own.client_secret)
        if secret is None or own.client_auth == "post":
            form["client_id"] = own.client_id
            form |= {} if secret is None else {"client_secret": secret.reveal()}
        else:  # 2.3.1: both are form-encoded before they are joined
            pair = f"{quote(own.client_id, safe='')}:{quote(secret.reveal(), safe='')}"
            headers.append(("authorization", "Basic " + base64.b64encode(pair.encode()).decode()))
        # A refresh token may be good for one use: the answer that holds the next is not thrown away.
        with trio.CancelScope(shield=refresh is not None, deadline=trio.current_time() + SECONDS + 1):
            try:
                answer = await fetch(
                    own.token_url, method="POST", headers=headers, body=urlencode(form).encode(), limit=MOST, ca_file=own.ca_file
                )
            except FetchError as error:
                raise Unobtainable(f"the authorization server: {error}") from None
            return self._read_answer(answer.status, answer.body)
        raise Unobtainable("the authorization server did not answer")

    def _refresh_token(self) -> Secret | None:
        configured = self._read(self._settings.refresh_token)
        if configured != self._configured:
            self._configured = self._refresh = configured
        return self._refresh

    def _read(self, ref: SecretRef | None) -> Secret | None:
        if ref is None:
            return None
        try:
            return self._resolve(ref)
        except LookupError:
            pass
        raise Unobtainable(f"its {'refresh_token' if ref is self._settings.refresh_token else 'client_secret'} can not be read")

    def _read_answer(self, status: int, body: bytes) -> Obtained:
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise Unobtainable(f"the authorization server answered {status}, and not in JSON") from None
        if status != 200:
            code = said.get("error")
            known = f" {code}" if isinstance(code, str) and code in _CODES else ""
            raise Unobtainable(f"the authorization server answered {status}{known}", final=bool(known) or status in (401, 403))
        token, kind = said.get("access_token"), said.get("token_type", "bearer")
        if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            raise Unobtainable("the authorization server's answer holds no token that a header can carry")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise Unobtainable("the authorization server's tokens are of another type than Bearer", final=True)
        renewed = said.get("refresh_token")
        if self._refresh is not None and isinstance(renewed, str) and _TOKEN.fullmatch(renewed) is not None:
            self._refresh = Secret(renewed)
        return Obtained(Secret(token), lasting(said.get("expires_in")))


def lasting(said: object) -> float:
    """Seconds a credential lives, as its issuer puts it: a number, or one in quotes; infinite where it says nothing usable."""
    try:
        seconds = float(said) if isinstance(said, (int, float, str)) and not isinstance(said, bool) else math.inf
    except (ValueError, OverflowError):
        return math.inf
    return seconds if seconds > 0 else math.inf
