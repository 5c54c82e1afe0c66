"""The upgrade of RFC 6455 section 4.2, from a head that has passed the strict HTTP check. No I/O.

Rule 1: broken bytes are a 400, another version a 426, a body a 400 (H-45, H-46, W-01); only then is the credential looked at.
Rule 2: an `Origin` that is not listed is a 403 before anything about credentials (W-20); so is a cookie as the only credential
        (W-24).
Rule 3: of the offered subprotocols only `claw.v1` is ever selected; `bearer.<unpadded base64url>` carries a credential.
Rule 4: no extension is ever negotiated (W-02, W-14).
Rule 5: a credential in the query string is refused (W-26), and its value appears nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from attrs import field, frozen

from clawproxy.config import Config
from clawproxy.dialects import claw
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head

OriginCheck = Callable[[Head, Config, bool], ClawError | None]
"""`check_origin(head, config, secure)`: why this head's Origin or Host is refused, or None."""

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_TOKEN: Final = 8192
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_ASCII = ("host", "upgrade", "connection", "origin", "authorization")
_SECRETS = re.compile(r"(?:^|[&;])(?:access_)?(?:token|api_?key|key|auth|authorization|secret)(?:=|&|;|$)", re.IGNORECASE)


@frozen(slots=True)
class Upgrade:
    """An upgrade to accept.

    Attributes:
        response: the 101, head and all.
        token: the credential that came with it, if one did.
    """

    response: bytes
    token: str | None = field(default=None, repr=False)


def upgrade(head: Head, config: Config, secure: bool, request_id: str, check_origin: OriginCheck) -> Upgrade:
    """Check an upgrade request.

    Raises:
        ClawError: `bad_head`, `bad_body`, `method_not_allowed`, `upgrade_required`, `invalid_request`, `auth.ambiguous`,
            or what `check_origin` has against it (`origin`, `misdirected`).
    """
    for name, value in head.headers:
        if (name in _ASCII or name.startswith("sec-websocket-")) and not (value.isascii() and value.isprintable()):
            raise ClawError("bad_head", f"The header `{name}` holds bytes outside visible ASCII.")
    refused = check_origin(head, config, secure)
    if refused is not None:
        raise refused
    if head.method != "GET":
        raise ClawError("method_not_allowed", "Open a WebSocket with GET (RFC 6455).")
    if head.chunked or head.content_length:
        raise ClawError("bad_body", "An upgrade to WebSocket has no body.")
    if "websocket" not in _list(head, "upgrade") or "upgrade" not in _list(head, "connection"):
        raise ClawError("upgrade_required")
    if head.all("sec-websocket-version") != ["13"]:
        raise ClawError("upgrade_required")
    accept = _accept(head.all("sec-websocket-key"))
    if _SECRETS.search(head.query) is not None:
        raise ClawError("invalid_request", "Credentials do not go into the query string; see docs/protocol.md.", param="query")
    selected, offered = _subprotocols(head)
    token = _token(head, offered)
    if token is None and head.get("origin") is None and head.get("cookie") is not None:
        raise ClawError("origin", "Cookies are no credential here; use `Authorization` or an `auth` frame.")
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"sec-websocket-accept: " + accept,
        b"x-request-id: " + request_id.encode("ascii"),
    ]
    if selected:
        lines.append(b"sec-websocket-protocol: " + claw.PROTOCOL.encode())
    return Upgrade(b"\r\n".join(lines) + b"\r\n\r\n", token)


def refusal(failure: ClawError, request_id: str, body: bytes | None = None) -> bytes:
    """The HTTP answer to an upgrade that is not accepted; the connection closes after it. Without `body` it is a Claw error."""
    body = claw.error(failure) if body is None else body
    lines = [
        f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        "connection: close",
    ]
    if failure.slug == "upgrade_required":
        lines[-1] = "connection: close, Upgrade"
        lines += ["upgrade: websocket", "sec-websocket-version: 13"]
    if failure.slug == "method_not_allowed":
        lines.append("allow: GET")
    if failure.details.retry_after_ms is not None:
        lines.append(f"retry-after: {max(1, -(-failure.details.retry_after_ms // 1000))}")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _list(head: Head, name: str) -> list[str]:
    """The elements of a comma-separated header, lower case."""
    return [part.strip().lower() for value in head.all(name) for part in value.split(",")]


def _accept(keys: list[str]) -> bytes:
    """Sec-WebSocket-Accept for the one Sec-WebSocket-Key, which is 16 bytes in base64."""
    try:
        (key,) = keys
        if len(base64.b64decode(key, validate=True)) != 16 or len(key) != 24:
            raise ValueError(key)
    except (ValueError, binascii.Error):
        raise ClawError("bad_head", "There must be one `Sec-WebSocket-Key` of 16 bytes in base64.") from None
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest())


def _subprotocols(head: Head) -> tuple[bool, list[str]]:
    """Whether `claw.v1` is among those offered, and the tokens of those that carry one."""
    names: list[str] = []
    for value in head.all("sec-websocket-protocol"):
        for part in value.split(","):
            name = part.strip(" \t")
            if _TOKEN.fullmatch(name) is None or name in names:
                raise ClawError("bad_head", "`Sec-WebSocket-Protocol` must list distinct tokens (RFC 6455 section 11.3.4).")
            names.append(name)
    return claw.PROTOCOL in names, [_unbase64(name[7:]) for name in names if name.startswith("bearer.")]


def _unbase64(text: str) -> str:
    """Unpadded base64url to text."""
    try:
        if _BASE64URL.fullmatch(text) is None:
            raise ValueError
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8")
    except (ValueError, binascii.Error):
        raise ClawError("bad_head", "The subprotocol `bearer.` must be followed by unpadded base64url of UTF-8.") from None


def _token(head: Head, offered: list[str]) -> str | None:
    found = list(offered)
    for value in head.all("authorization"):
        bearer = _BEARER.fullmatch(value)
        if bearer is not None:
            found.append(bearer[1])
    if len(set(found)) > 1:
        raise ClawError("auth.ambiguous")
    if not found:
        return None
    if len(found[0]) > MAX_TOKEN:
        raise ClawError("bad_head", "The credential is too long.")
    return found[0]
