"""The strict head check: one language for both engines.

Rule 1: bytes are refused the moment they break a rule that needs no context: a bare LF, a CR without its LF, a control
        character, a line that begins with white space. Everything else waits for the whole head.
Rule 2: what RFC 9112 lets a recipient repair is refused, not repaired: two readings of one head are how requests are smuggled.
Rule 3: the engine's reading is compared with our own; where they differ, the request is refused.

Sources: RFC 9110, RFC 9112; the cases of `tests/corpus/http`.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from clawproxy.errors import ClawError
from clawproxy.http1.engine import Engine, EngineRefused
from clawproxy.http1.head import Head

MAX_FIELDS = 100
MAX_TARGET = 8 * 1024
_MAX_INT64 = 2**63 - 1
_MAX_HOST = 300

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD_LINE = TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n"
# Refused at once, wherever in a head: controls, a bare LF, a bare CR (one at the very end may still get its LF), and white
# space at the start of a line (obs-fold, or before the first field).
AT_ONCE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)|(?<=\n)[ \t]|\A[\r \t]")
_HEAD = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n((?:" + FIELD_LINE + rb")*)\r\n")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,19}")
_HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(r"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_CONNECTION = re.compile(r"[\x21-\x7e\t ]*")
_CODING = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_RISKY_TARGET = re.compile(r"%00|%0d|%0a|%2f|\.\.|//|[^\x21-\x7e]", re.IGNORECASE)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NEVER = frozenset({"CONNECT", "TRACE"})
_ONCE = frozenset({"host", "content-length", "transfer-encoding", "expect", "content-type", "content-encoding", "upgrade"})
_GUARDED = frozenset(
    _ONCE
    | {"connection", "te", "trailer", "keep-alive", "authorization", "proxy-authorization", "proxy-connection"}
    | {"x-api-key", "api-key", "x-goog-api-key", "cookie", "origin", "forwarded", "via", "x-real-ip"}
)
_GUARDED_PREFIXES = ("x-forwarded-", "x-claw-", "sec-websocket-")


class HeadCollector:
    """Collects bytes until a head is whole. Sans-IO; any cut of the same bytes gives the same verdict."""

    __slots__ = ("_buffer", "_limit", "match", "rest")

    def __init__(self, limit: int) -> None:
        """Args: limit: the most bytes a head may have, its empty line included."""
        self._buffer = b""
        self._limit = limit
        self.match: re.Match[bytes] | None = None
        """The parts of a head that came whole in the first bytes, for `parse_head`."""
        self.rest = b""
        """What came after the head, once it is whole."""

    @property
    def started(self) -> bool:
        """Whether any byte has come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> bytes | None:
        """The whole head with its empty line, or None where more is needed.

        Raises:
            ClawError: bad_head, head_too_large, target_too_long.
        """
        old = len(self._buffer)
        if not old:
            # Nearly every head comes whole and good. One pattern sees that in 1-2 us, where the search for faults takes
            # 10-30 us; what it takes, `AT_ONCE` has nothing against.
            match = _HEAD.match(data)
            if match is not None and match.end() <= self._limit:
                self.match = match
                self.rest = data[match.end() :]
                return match[0]
        buffer = self._buffer + data if old else data
        self._buffer = buffer
        end = buffer.find(b"\r\n\r\n", max(0, old - 3))
        stop = len(buffer) if end < 0 else end + 4
        bad = AT_ONCE.search(buffer, max(0, old - 1), stop)
        if bad is not None and bad.start() < self._limit:
            raise ClawError("bad_head", _reason(buffer, bad.start()))
        if stop > self._limit or (end < 0 and stop == self._limit):
            line = buffer.find(b"\r\n", 0, self._limit)
            space = buffer.find(b" ", 0, 32)
            raise ClawError("target_too_long" if line < 0 and space >= 0 else "head_too_large")
        if end < 0:
            return None
        self.rest = buffer[stop:]
        return buffer[:stop]


def _reason(buffer: bytes, at: int) -> str:
    byte = buffer[at : at + 1]
    if byte == b"\n":
        return "A line of the request head ends in a bare LF (RFC 9112, 2.2)."
    if byte == b"\r":
        return "The request head holds a CR without its LF, or begins with an empty line (RFC 9112, 2.2)."
    if byte in b" \t":
        return "A line of the request head begins with white space (RFC 9112, 5.2)."
    return "The request head holds a control character (RFC 9110, 5.5)."


def parse_head(raw: bytes, engine: Engine, match: re.Match[bytes] | None = None) -> Head:
    """Check and read one whole head.

    Args:
        raw: what `HeadCollector.feed` returned.
        engine: fresh; it is ready for the body afterwards.
        match: `HeadCollector.match` of the same bytes.

    Raises:
        ClawError: bad_head, head_too_large, target_too_long, http_version, not_implemented, method_not_allowed,
            expectation_failed, or body_too_large for a length that no integer of 64 bits holds.
    """
    fields = raw.count(b"\r\n") - 2
    if fields > MAX_FIELDS:
        raise ClawError("head_too_large", f"The request head has more than {MAX_FIELDS} fields.")
    if match is None:
        match = _HEAD.fullmatch(raw)
    if match is None:
        raise ClawError("bad_head", _shape(raw))
    method_bytes, target_bytes, version_bytes = match.group(1, 2, 3)
    method, target, version = method_bytes.decode("ascii"), target_bytes.decode("ascii"), version_bytes.decode("ascii")
    _check_line(method, target, version)
    # The framing is checked on our own reading first: the engines differ in what they refuse, and with which words.
    headers, special = _fields(match[4])
    length, chunked = _framing(special, version)
    path, query = _target(method, target, special.get("host"), version)
    keep_alive, upgrade = _connection(special.get("connection"), version)
    if upgrade and "upgrade" in special and method == "GET" and (length or chunked):
        raise ClawError("bad_head", "A request to upgrade must not have a body.")
    expect = special.get("expect")
    if expect is not None and version == "1.1" and expect.lower() != "100-continue":
        raise ClawError("expectation_failed")
    try:
        read = engine.head(raw)
    except EngineRefused as error:
        raise ClawError("bad_head") from error
    if read.method != method_bytes or read.target != target_bytes or read.version != version or len(read.headers) != fields:
        raise ClawError("bad_head")
    if engine.complete != (not length and not chunked):
        raise ClawError("bad_head")
    return Head(method, target, path, query, headers, keep_alive, length, chunked, version)


def risky_target(target: str) -> bool:
    """Whether a target that is not served looks like an attempt on whoever decodes it more than once: its connection closes."""
    return _RISKY_TARGET.search(target) is not None


# --- the parts -------------------------------------------------------------------------------------------------------------


def _shape(raw: bytes) -> str:
    line = raw[: raw.find(b"\r\n")]
    if re.fullmatch(TOKEN + rb" [\x21-\x7e]+ HTTP/[0-9]\.[0-9]", line) is None:
        return "The request line is not `METHOD SP TARGET SP HTTP/1.1` (RFC 9112, 3)."
    return "A header field is not `name: value` (RFC 9112, 5)."


def _check_line(method: str, target: str, version: str) -> None:
    if method == "PRI":
        raise ClawError("bad_head", "HTTP/2 is not spoken here.")
    if version not in ("1.1", "1.0"):
        raise ClawError("http_version")
    if method not in METHODS:
        raise ClawError("method_not_allowed" if method in _NEVER else "not_implemented")
    if len(target) > MAX_TARGET:
        raise ClawError("target_too_long")


def _fields(block: bytes) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """All headers, lower-case names, and apart the ones that decide something."""
    headers: list[tuple[str, str]] = []
    special: dict[str, str] = {}
    if not block:
        return (), special
    for line in block[:-2].decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in _ONCE:
            if name in special:
                raise ClawError("bad_head", f"The field `{name}` comes more than once.")
            special[name] = value
        elif name == "connection":
            special[name] = f"{special[name]},{value}" if name in special else value
        elif "_" in name:
            # A front-end that reads `_` as `-` would see another request than we do (RFC 9110, 5.1; CGI's old mapping).
            read = name.replace("_", "-")
            if read in _GUARDED or read.startswith(_GUARDED_PREFIXES):
                raise ClawError("bad_head", "A field name with `_` stands for one that decides something.")
            continue
        headers.append((name, value))
    return tuple(headers), special


def _framing(special: dict[str, str], version: str) -> tuple[int | None, bool]:
    """`(content_length, chunked)` (RFC 9112, 6)."""
    length, coding = special.get("content-length"), special.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise ClawError("bad_head", "Content-Length and Transfer-Encoding exclude each other.")
        if version == "1.0":
            raise ClawError("bad_head", "Transfer-Encoding needs HTTP/1.1.")
        if coding.lower() != "chunked":
            alone = _CODING.fullmatch(coding) is not None
            raise ClawError("not_implemented" if alone else "bad_head", "Only the transfer coding `chunked` is understood.")
        return None, True
    if length is None:
        return None, False
    if _LENGTH.fullmatch(length) is None:
        raise ClawError("bad_head", "Content-Length is not one plain decimal number.")
    value = int(length)
    if value > _MAX_INT64:
        raise ClawError("body_too_large")
    return value, False


def _target(method: str, target: str, host: str | None, version: str) -> tuple[str, str]:
    """`(path, query)`, raw. Checks the target's form and the Host field (RFC 9112, 3.2)."""
    if host is None:
        if version == "1.1":
            raise ClawError("bad_head", "The Host field is missing.")
    elif not valid_host(host):
        raise ClawError("bad_head", "The Host field is not `host` or `host:port`.")
    if "#" in target or "\\" in target:
        raise ClawError("bad_head", "The request target holds a `#` or a backslash.")
    if target == "*":
        if method != "OPTIONS":
            raise ClawError("method_not_allowed")
        return "*", ""
    if not target.startswith("/"):
        match = _ABSOLUTE.fullmatch(target)
        if match is None or not valid_host(match[1]):
            raise ClawError("bad_head", "The request target is neither a path nor an http URL.")
        if host is not None and match[1].lower() != host.lower():
            raise ClawError("bad_head", "The request target names another host than the Host field.")
        target = match[2] if match[2].startswith("/") else "/" + match[2]
    path, _, query = target.partition("?")
    return path, query


def _connection(value: str | None, version: str) -> tuple[bool, bool]:
    """`(keep_alive, upgrade)`."""
    if value is None:
        return version == "1.1", False
    if _CONNECTION.fullmatch(value) is None:
        raise ClawError("bad_head", "The Connection field holds bytes that are not ASCII.")
    options = {option.strip(" \t") for option in value.lower().split(",")}
    # HTTP/1.0's keep-alive is not taken up: it would have to be granted in the answer, and nobody needs it.
    return version == "1.1" and "close" not in options, "upgrade" in options


def valid_host(value: str) -> bool:
    """`host`, `host:port`, `[v6]`, `[v6]:port` (RFC 9110, 7.2); no user, no list."""
    return len(value) <= _MAX_HOST and _valid_host(value)


@lru_cache(maxsize=256)  # the value's length is bounded above
def _valid_host(value: str) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or (match[3] is not None and int(match[3]) > 65535):
        return False
    if match[2] is not None:
        try:
            ipaddress.IPv6Address(match[2])
        except ValueError:
            return False
    return True
