"""The bytes of a provider request: a head of the gateway's own, and the body a dialect made.

Rule 1: no header of a client is here to be forwarded. Headers come from the dialect, then the operator (who wins); host,
        length, credential and what belongs to the connection are set here and by nobody else.
Rule 2: names and values are checked against RFC 9110, 5.1 and 5.5, so that none can end its line. The path stays below the base
        URL's prefix: visible ASCII, no fragment, no dot segment.
Rule 3: the credential is revealed at the moment it is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from clawproxy._version import __version__
from clawproxy.dialects.base import OutboundRequest
from clawproxy.errors import ClawError
from clawproxy.secrets import Secret
from clawproxy.upstream.proxy import Proxy
from clawproxy.upstream.url import BaseURL, has_dot_segment

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
_METHOD = re.compile(r"[A-Z]+")

RESERVED = frozenset(
    [
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"),
        *("accept-encoding", "proxy-authorization", "proxy-connection"),
    ]
)
"""Header names nobody but this module sets."""


def header_problem(name: str, value: str) -> str | None:
    """Why this header can not be sent, or None. The value is not repeated: it may be a key."""
    if not _NAME.fullmatch(name):
        return "the name is not a header name (RFC 9110, 5.1)"
    if name.lower() in RESERVED:
        return "the gateway sets this header itself"
    if not _VALUE.fullmatch(value):
        return "the value holds characters no header may carry (RFC 9110, 5.5)"
    return None


class RequestEncoder:
    """Encodes for one provider. Heads without the credential are kept, as most requests share one."""

    def __init__(self, url: BaseURL, headers: Mapping[str, str], auth_header: str, proxy: Proxy | None) -> None:
        """`headers`: the operator's, already checked with `header_problem`. `proxy`: where requests go to it in absolute form
        (http; an https provider's proxy only sees CONNECT)."""
        self._url = url
        self._operator = {name.lower(): value for name, value in headers.items()}
        self._auth_header = auth_header.lower()
        self._proxy = proxy
        self._origin = f"http://{url.authority}" if proxy is not None else ""
        self._head = lru_cache(maxsize=256)(self._build_head)

    def encode(self, outbound: OutboundRequest, credential: Secret | None) -> bytes:
        """Head and body, for one write. Raises ClawError("invalid_request") where the path leaves the provider's base path."""
        parts = [self._head(outbound.method, outbound.path, tuple(outbound.headers))]
        if credential is not None and self._auth_header:
            scheme = "Bearer " if self._auth_header == "authorization" else ""
            parts.append(f"{self._auth_header}: {scheme}{credential.reveal()}\r\n".encode("ascii"))
        if self._proxy is not None and self._proxy.authorization is not None:
            parts.append(f"proxy-authorization: {self._proxy.authorization.reveal()}\r\n".encode("ascii"))
        if outbound.body or outbound.method not in ("GET", "HEAD"):
            parts.append(b"content-length: %d\r\n" % len(outbound.body))
        parts.append(b"\r\n")
        parts.append(outbound.body)
        return b"".join(parts)

    def _build_head(self, method: str, path: str, headers: Sequence[tuple[str, str]]) -> bytes:
        if not _PATH.fullmatch(path) or has_dot_segment(path.partition("?")[0]):
            raise ClawError("invalid_request", "The request does not make a valid address at this provider.", param="model")
        if not _METHOD.fullmatch(method):
            raise ValueError("a dialect made a method that is none")
        fields = {"user-agent": f"clawproxy/{__version__}", "accept-encoding": "identity"}
        for name, value in headers:
            problem = header_problem(name, value)
            if name.lower() == self._auth_header:
                problem = "the credential is not the dialect's to send"
            if problem is not None:
                raise ValueError(f"a dialect made a bad header {name!r}: {problem}")
            fields[name.lower()] = value
        fields.update(self._operator)
        lines = [f"{method} {self._origin}{self._url.prefix}{path} HTTP/1.1", f"host: {self._url.authority}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, ""]).encode("ascii")
