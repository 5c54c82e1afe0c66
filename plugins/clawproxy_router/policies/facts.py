"""What a policy can ask. Nothing is worked out before it is asked for, and then once.

Rule: None is "not known", and only a past request can answer it: what nobody said is an empty tuple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from attrs import define, evolve, field

from clawproxy.context import Exchange
from clawproxy.messages import EMPTY, AudioPart, ChatRequest, FilePart, ImagePart, Message
from clawproxy_router.needs import INFERRED, Needs, needs_of

SCANNED: Final = 256 * 1024
"""Bytes of a prompt that patterns are sought in: its newest. At 500 MB/s that is half a millisecond for each condition."""
NOBODY: Final[tuple[str, ...]] = ()

Said = tuple[str, ...] | None


class Facts(Protocol):
    """`words` is asked for `user team role app key tag model surface operation`, `size` for `input_tokens bytes messages`."""

    def words(self, name: str) -> Said: ...

    def metadata(self, name: str) -> Said: ...

    def size(self, name: str) -> float | None: ...

    def needs(self) -> Said: ...

    def texts(self) -> Sequence[bytes] | None:
        """The newest first, `SCANNED` bytes in all."""

    def now(self) -> float:
        """Unix time."""


@define(slots=True, eq=False)
class RequestFacts:
    """Of a request at work."""

    exchange: Exchange
    request: ChatRequest
    _needs: Needs | None = field(default=None, init=False)
    _texts: list[bytes] | None = field(default=None, init=False)

    def words(self, name: str) -> Said:
        exchange, principal = self.exchange, self.exchange.principal
        match name:
            case "model":
                return (self.request.model,)
            case "key":
                return (principal.key,)
            case "role":
                return principal.roles
            case "tag":
                return principal.tags
            case "surface":
                return (exchange.surface,)
            case "operation":
                return (self.request.operation,)
        # a client's own user and app are in the exchange only where its key may assert them
        said = {"user": exchange.user or principal.user, "app": exchange.app or principal.app, "team": principal.team}[name]
        return NOBODY if said is None else (said,)

    def metadata(self, name: str) -> Said:
        return _plain(self.request.metadata.get(name))

    def size(self, name: str) -> float:
        if name == "messages":
            return len(self.request.messages)
        if name == "bytes":
            return sum(map(_bytes, self.request.messages))
        return self._needed().input_tokens

    def needs(self) -> Said:
        return tuple(self._needed().capabilities & INFERRED)

    def _needed(self) -> Needs:
        if self._needs is None:  # what the client says it needs is no fact about its prompt, and may be nonsense
            self._needs = needs_of(evolve(self.request, metadata=EMPTY), self.exchange.principal)
        return self._needs

    def texts(self) -> Sequence[bytes]:
        if self._texts is None:
            self._texts = newest([message.text() for message in self.request.messages])
        return self._texts

    def now(self) -> float:
        return self.exchange.started_unix


def newest(texts: Sequence[str], most: int = SCANNED) -> list[bytes]:
    """The last of the texts first, of the one where the room ends its end."""
    found = []
    for text in reversed(texts):
        data = text[-most:].encode("utf-8", "surrogatepass")[-most:]
        if data:
            found.append(data)
            most -= len(data)
        if most <= 0:
            break
    return found


def _bytes(message: Message) -> int:
    content = message.content
    if isinstance(content, str):
        return _length(content)
    size = 0
    for part in content or ():
        if isinstance(part, ImagePart | AudioPart | FilePart):
            size += len(part.data or "")  # base64
        else:
            size += _length(part.text)
    return size


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _plain(said: object) -> tuple[str, ...]:
    """A value of the client's metadata: a string, a number, true or false; anything else is none."""
    if isinstance(said, bool):
        return ("true" if said else "false",)
    return (str(said),) if isinstance(said, str | int | float) else NOBODY


@define(slots=True, eq=False)
class RowFacts:
    """Of a past request, as its row in the audit log has it: who and when, not what was said."""

    row: Mapping[str, Any]

    def words(self, name: str) -> Said:
        listed = {"role": "roles", "tag": "tags"}.get(name)
        if listed is not None:  # stand in a row where there are any
            said = self.row.get(listed, ())
            return tuple(each for each in said if isinstance(each, str)) if isinstance(said, list | tuple) else None
        if name not in self.row:
            return ("chat",) if name == "operation" else None
        value = self.row[name]
        return (value,) if isinstance(value, str) else NOBODY

    def metadata(self, name: str) -> Said:
        return None

    def size(self, name: str) -> float | None:
        """The tokens as they were counted afterwards, which an estimate need not meet."""
        usage = self.row.get("usage")
        tokens = usage.get("input_tokens") if name == "input_tokens" and isinstance(usage, dict) else None
        return tokens if isinstance(tokens, int) else None

    def needs(self) -> Said:
        return None

    def texts(self) -> Sequence[bytes] | None:
        return None

    def now(self) -> float:
        """When it began: its row was written at its end. Raises ValueError where the row says no time."""
        timing = self.row.get("timing_ms")
        took = timing.get("total") if isinstance(timing, dict) else None
        return datetime.fromisoformat(str(self.row.get("time"))).timestamp() - (
            took / 1000 if isinstance(took, int | float) else 0
        )
