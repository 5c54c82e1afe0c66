"""One small HTTP request of the control plane: a key set, a token, a webhook. Never an application's request.

Rule 1: everything is bounded: time, bytes of the answer, and where it may go: https, or http to this machine itself.
Rule 2: a redirect is an answer like any other; nothing is followed.
Rule 3: an error is a sentence that holds no part of the URL beyond its host, no header and no body: those may carry secrets.

On httpcore2, which comes with `pip install clawproxy[control]` and is imported when it is first needed.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import trio

from clawproxy.values import value

LIMIT = 256 * 1024
SECONDS = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class FetchError(Exception):
    """It could not be had; the sentence says why."""


@value
class Fetched:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


def problem_with(url: str) -> str | None:
    """Why this URL can not be fetched from, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or parts.username is not None or parts.fragment or not url.isascii() or any(c <= " " for c in url):
        return "is not a URL of the form https://host/path"
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        return "must begin with https:// (http:// only to this machine itself)"
    return None


async def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    limit: int = LIMIT,
    seconds: float = SECONDS,
    ca_file: Path | None = None,
) -> Fetched:
    """Args:
        limit: bytes the answer's body may have.
        seconds: for all of it.
        ca_file: certificates to trust instead of the system's.

    Raises FetchError.
    """
    problem = problem_with(url)
    if problem is not None:
        raise FetchError(f"the address {problem}")
    try:
        import httpcore2
    except ImportError:
        raise FetchError("needs the package httpcore2; run `pip install clawproxy[control]`") from None
    host = urlsplit(url).hostname
    data = bytearray()
    try:
        with trio.fail_after(seconds):
            async with (
                httpcore2.AsyncConnectionPool(_context(ca_file, _changed(ca_file)), max_connections=1) as pool,
                pool.stream(method, url, headers=[*headers, ("accept-encoding", "identity")], content=body) as answer,
                aclosing(answer.aiter_stream()) as chunks,
            ):
                async for chunk in chunks:
                    data += chunk
                    if len(data) > limit:
                        raise FetchError(f"{host} sent more than {limit} bytes")
    except trio.TooSlowError:
        raise FetchError(f"{host} did not answer within {seconds:g} s") from None
    except (OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
        raise FetchError(f"{host} could not be reached or understood ({_cause(error)})") from None
    names = {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in answer.headers}
    return Fetched(answer.status, names, bytes(data))


@lru_cache(maxsize=16)
def _context(ca_file: Path | None, _: tuple[int, int, int] | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _changed(file: Path | None) -> tuple[int, int, int] | None:
    """What is another one where the file is: authorities are replaced while the gateway runs. Raises OSError."""
    if file is None:
        return None
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _cause(error: BaseException) -> str:
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message.rstrip('.')}"
    return type(error).__name__
