"""The bytes of a provider request: a head of the gateway's own, and the body a dialect made.

Rule 1: no header of a client is here to be forwarded. Headers come from the dialect, then the operator (who wins); host,
        length, credential and what belongs to the connection are set here and by nobody else.
Rule 2: names and values are checked against RFC 9110, 5.1 and 5.5, so that none can end its line. The path stays below the base
        URL's prefix: visible ASCII, no fragment, no dot segment.
Rule 3: the credential is revealed at the moment it is written.
Rule 4: a head is checked and joined once for each (method, path, headers) and kept without what differs from request to request:
        the credential, the length, and an `x-request-id` that the dialect's headers end with, which is checked by itself.
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
REQUEST_ID = "x-request-id"

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
    """Encodes for one provider."""

    def __init__(self, url: BaseURL, headers: Mapping[str, str], auth_header: str, proxy: Proxy | None) -> None:
        """`headers`: the operator's, already checked with `header_problem`. `proxy`: where requests go to it in absolute form
        (http; an https provider's proxy only sees CONNECT)."""
        self._url = url
        self._operator = {name.lower(): value for name, value in headers.items()}
        self._auth_header = auth_header.lower()
        self._proxy = proxy
        self._origin = f"http://{url.authority}" if proxy is not None else ""
        self._takes_id = REQUEST_ID not in self._operator and self._auth_header != REQUEST_ID
        self._before_key = f"{self._auth_header}: {'Bearer ' if self._auth_header == 'authorization' else ''}"
        self._head = lru_cache(maxsize=256)(self._build_head)

    def encode(self, outbound: OutboundRequest, credential: Secret | None) -> bytes:
        """Head and body, for one write. Raises ClawError("invalid_request") where the path leaves the provider's base path."""
        headers, body, lines = tuple(outbound.headers), outbound.body, ""
        if headers and headers[-1][0] == REQUEST_ID and self._takes_id and _VALUE.fullmatch(ident := headers[-1][1]):
            headers, lines = headers[:-1], f"{REQUEST_ID}: {ident}\r\n"
        head = self._head(outbound.method, outbound.path, headers, lines != "")
        if credential is not None and self._auth_header:
            lines += f"{self._before_key}{credential.reveal()}\r\n"
        if self._proxy is not None and self._proxy.authorization is not None:
            lines += f"proxy-authorization: {self._proxy.authorization.reveal()}\r\n"
        if body or outbound.method not in ("GET", "HEAD"):
            lines += f"content-length: {len(body)}\r\n"
        return b"".join((head, lines.encode("ascii"), b"\r\n", body))

    def _build_head(self, method: str, path: str, headers: Sequence[tuple[str, str]], with_id: bool) -> bytes:
        """`with_id`: an `x-request-id` will follow, which replaces any that is here."""
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
        if with_id:
            fields.pop(REQUEST_ID, None)
        lines = [f"{method} {self._origin}{self._url.prefix}{path} HTTP/1.1", f"host: {self._url.authority}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, ""]).encode("ascii")
