"""The seam between the strict head check and the parser behind it.

Rule 1: an engine sees exactly one request: the bytes of one head, then the bytes of its body, cut where the strict check
        found them to end. It never sees what comes after, so it can not frame anything on its own.
Rule 2: both engines must read the same thing from the same bytes. What an engine refuses after the strict check passed it is
        refused; what it reads differently (`headcheck`, `body` compare) is refused as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import frozen


class EngineRefused(Exception):
    """The engine does not take these bytes. The text is for tests; it is not shown to anybody."""


@frozen(slots=True)
class RawHead:
    """What an engine read: nothing interpreted, nothing decoded."""

    method: bytes
    target: bytes
    version: str
    """`1.0` or `1.1`."""
    headers: Sequence[tuple[bytes, bytes]]


class Engine(Protocol):
    """One request's parser."""

    complete: bool
    """The message has ended, as far as the engine can tell."""

    def head(self, data: bytes) -> RawHead:
        """Read one whole head. Raises EngineRefused."""
        ...

    def body(self, data: bytes) -> bytes:
        """Read the next raw bytes of the body; returns what they hold, chunk framing removed. Raises EngineRefused."""
        ...


EngineFactory = Callable[[], Engine]
ENGINES = ("httptools", "h11")
VARIABLE = "CLAWPROXY_HTTP_ENGINE"


def select(name: str | None = None) -> EngineFactory:
    """The engine asked for: by name, else by `CLAWPROXY_HTTP_ENGINE`, else httptools where it is installed, else h11.

    Raises:
        ValueError: no such engine.
        ImportError: httptools was asked for and is not installed.
    """
    wanted = name or os.environ.get(VARIABLE) or None
    if wanted not in (None, *ENGINES):
        raise ValueError(f"no HTTP engine is called {wanted!r}; there are {', '.join(ENGINES)}")
    if wanted != "h11":
        try:
            from clawproxy.http1.engine_httptools import HttptoolsEngine
        except ImportError:
            if wanted == "httptools":
                raise
        else:
            return HttptoolsEngine
    from clawproxy.http1.engine_h11 import H11Engine

    return H11Engine
