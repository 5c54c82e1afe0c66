"""What answers are made of: a closed union of events, and the batches they travel in.

Rule 1: these classes are final; dispatch is by `type(event)`. A new kind of event is a new class here and a case in every
        encoder (mypy shows where: each ends in `assert_never`).
Rule 2: a batch is what one network read of the provider decoded to. Nothing waits to fill one up.
Rule 3: a batch keeps the provider's own bytes; they are sent as they are when nobody changed an event and the client speaks
        the same dialect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, Usage
from clawproxy.values import value

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "budget", "cancelled", "other"]


@final
@value
class Begin:
    """The provider began: its id for the answer and the model that answers. Held back until the first content."""

    model: str | None = None
    id: str | None = None
    extra: Mapping[str, Any] = EMPTY


@final
@value
class Text:
    text: str


@final
@value
class Reasoning:
    """`signature` and `data` are `messages.Thinking`'s; they come with the last piece of a block, which may have no text."""

    text: str
    signature: str | None = None
    data: str | None = None
    id: str | None = None


@final
@value
class Refused:
    """The model's own refusal text (OpenAI `delta.refusal`)."""

    text: str


@final
@value
class ToolCallDelta:
    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str | None = None
    """As in `messages.ToolCall`."""


@final
@value
class Opaque:
    """Content the vocabulary has no word for (a citation, an image, a server tool's block). It reaches clients of the same
    dialect only, in the provider's own bytes."""

    kind: str
    data: bytes | None = None
    """The JSON it came in, for an encoder of the same format that can not use the batch's bytes."""


@final
@value
class Embedding:
    """One vector: numbers, or base64 of little-endian float32 where the client asked for that."""

    index: int
    values: tuple[float, ...] | str


@final
@value
class UsageReport:
    """Usage as the provider reports it; cumulative: the last one counts."""

    usage: Usage


@final
@value
class Finish:
    reason: FinishReason
    raw: str | None = None
    """The provider's own word."""
    stop_sequence: str | None = None
    """The one that was met, where the provider says which."""


@final
@value
class End:
    """The terminal marker of the format was seen (`[DONE]`, `message_stop`, the whole body). After it the answer is complete,
    whatever the socket does."""


@final
@value
class Failed:
    """The provider reported an error inside its answer, or its bytes could not be understood."""

    error: ClawError


@final
@value
class KeepAlive:
    """A comment or ping. It resets no clock and reaches no tap."""


Event = Begin | Text | Reasoning | Refused | ToolCallDelta | Opaque | Embedding | UsageReport | Finish | End | Failed | KeepAlive
CONTENT: frozenset[type] = frozenset({Text, Reasoning, Refused, ToolCallDelta, Opaque, Embedding})
"""The events a client is waiting for: the first of them is the commit point, and only they reset the `stall` clock."""


class Batch:
    """Events that arrived together, and the bytes they arrived as.

    Attributes:
        events: never changed in place: `replaced` makes another batch.
        raw: the provider's bytes of exactly these events, or None where they can not stand for them (made by the gateway,
            changed by a transform, or holding something this client did not ask for).
        dialect: the format `raw` is in.
    """

    __slots__ = ("dialect", "events", "raw")

    def __init__(self, events: Sequence[Event], *, raw: bytes | None = None, dialect: str = "") -> None:
        self.events = events
        self.raw = raw
        self.dialect = dialect

    def replaced(self, events: Sequence[Event]) -> Batch:
        """The same place in the stream with other events: the provider's bytes no longer stand for them."""
        return Batch(events, dialect=self.dialect)

    def has_content(self) -> bool:
        for event in self.events:  # noqa: SIM110  # `any` costs three times this
            if type(event) in CONTENT:
                return True
        return False

    def __repr__(self) -> str:
        return f"<Batch {list(self.events)!r}{' raw' if self.raw is not None else ''}>"


@final
@value
class Notice:
    """Something the client should know about its request: `prompt_truncated`, `redacted`, `fallback`, `parameter_dropped`..."""

    code: str
    message: str
    details: Mapping[str, Any] = EMPTY


@final
@value
class Outcome:
    """How an exchange ended. `label` is one of `errors.OUTCOMES`."""

    label: str
    error: ClawError | None = None
    finish: FinishReason | None = None
