"""What a request's head says about who asks, and with what limits: read once, before the body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from attrs import asdict

from clawproxy.config import LimitsConfig
from clawproxy.context import Attribution
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import EMPTY, Credentials
from clawproxy.transport.certificates import shown as credentials_of

KEY_HEADERS = ("x-api-key", "api-key", "x-goog-api-key")
_BEARER = re.compile(r"bearer[ ]+(.*)", re.IGNORECASE | re.DOTALL)
_LIST = re.compile(r",\s*bearer\s", re.IGNORECASE)
_KEY_IN_QUERY = re.compile(r"(?:^|&)(?:key|api_key|access_token)=")
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")
_JSON = re.compile(r'application/json[ \t]*(?:;[ \t]*charset=(?:"utf-8"|utf-8)[ \t]*)?', re.IGNORECASE)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ATTRIBUTION = re.compile(r"[\x20-\x7e]{1,256}")
_ATTRIBUTED = {
    "x-clawrouter-client": "client",
    "x-clawrouter-agent-id": "agent_id",
    "x-clawrouter-session-id": "session_id",
    "x-clawrouter-project-id": "project_id",
}
_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")


def read_credentials(head: Head, peer: str, surface: str) -> Credentials:
    """From `Authorization: Bearer`, `x-api-key`, `api-key` or `x-goog-api-key`; the same one in several of them is one.

    Raises:
        ClawError: auth.missing where one stands in the query instead; auth.ambiguous for two that differ or two Authorization
            fields; auth.invalid for what can not be a credential: another scheme, or anything but 1 to 8192 visible ASCII
            characters.
    """
    shown: list[str] = []
    lines = 0
    for name, value in head.headers:
        if name == "authorization":
            lines += 1
            if lines > 1 or _LIST.search(value) is not None:
                raise ClawError("auth.ambiguous")
            match = _BEARER.fullmatch(value)
            shown.append(match[1].strip() if match else "")
        elif name in KEY_HEADERS:
            shown.append(value)
    if not shown:
        if _KEY_IN_QUERY.search(head.query) is not None:
            raise ClawError("auth.missing", "The key must not stand in the URL, where logs keep it: send it in a header.")
        return credentials_of(None, peer, surface)
    if len(shown) > 1 and any(other != shown[0] for other in shown):
        raise ClawError("auth.ambiguous")
    if _TOKEN.fullmatch(shown[0]) is None:
        raise ClawError("auth.invalid")
    return credentials_of(shown[0], peer, surface)


_WANTED = frozenset({"x-claw-capabilities", "x-claw-quality", "x-claw-region"})


def check_content(head: Head) -> None:
    """The body must be JSON in UTF-8, as it is. Raises ClawError("unsupported_media_type")."""
    coding = head.get("content-encoding")
    if coding is not None and coding.lower() != "identity":
        raise ClawError("unsupported_media_type", "Request bodies must not be compressed.")
    kind = head.get("content-type")
    if kind != "application/json" and (kind is None or _JSON.fullmatch(kind) is None):
        raise ClawError("unsupported_media_type")


def client_deadline(head: Head) -> float | None:
    """`x-claw-deadline-ms` in seconds. Raises ClawError("invalid_request")."""
    value = head.get("x-claw-deadline-ms")
    if value is None:
        return None
    if _MILLISECONDS.fullmatch(value) is None:
        raise ClawError("invalid_request", "x-claw-deadline-ms is a whole number of milliseconds.", param="x-claw-deadline-ms")
    return int(value) / 1000


def client_request_id(head: Head) -> str | None:
    """The client's own `X-Request-ID`, where it is fit for a log."""
    value = head.get("x-request-id")
    return value if value is not None and _REQUEST_ID.fullmatch(value) is not None else None


def attribution(head: Head) -> Attribution | None:
    """`X-ClawRouter-Client`, `-Agent-Id`, `-Session-Id` and `-Project-Id`, where they are fit for a log; what is not, or comes
    twice, is left out: a request does not fail over a label."""
    said: dict[str, str | None] = {}
    for name, value in head.headers:
        if name.startswith("x-clawrouter-") and (field := _ATTRIBUTED.get(name)) is not None:
            text = value.strip()
            said[field] = text if field not in said and _ATTRIBUTION.fullmatch(text) is not None else None
    return Attribution(**said) if any(said.values()) else None


def cache_control(head: Head) -> str | None:
    """`Cache-Control`, all of its lines; None for more than 256 characters of it."""
    values = [value for name, value in head.headers if name == "cache-control"]
    text = ", ".join(values)
    return text if values and len(text) <= 256 else None


def wanted(head: Head) -> Mapping[str, str]:
    """`x-claw-capabilities`, `x-claw-quality` and `x-claw-region`, by the words after `x-claw-`.
    Raises ClawError("invalid_request") for what is no short text."""
    said: dict[str, str] = {}
    for name, value in head.headers:
        if name in _WANTED:
            if name[7:] in said or _ATTRIBUTION.fullmatch(value.strip()) is None:
                raise ClawError("invalid_request", f"{name} may be said once, in at most 256 printable characters.", param=name)
            said[name[7:]] = value.strip()
    return said or EMPTY


@lru_cache(maxsize=4)  # one entry for each generation of the configuration
def decode_limits(limits: LimitsConfig) -> Mapping[str, int]:
    """`[limits]` as `ClientDialect.decode_request` takes it."""
    return {name: value for name, value in asdict(limits).items() if isinstance(value, int)}
