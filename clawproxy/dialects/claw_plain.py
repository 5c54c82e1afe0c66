"""The short way for the `llm_request` that most clients send: one typed pass over the bytes (1.2 us instead of 4.3).

Rule 1: `plain` says None to whatever it does not know, and to whatever is wrong: then `jsonio.decode` and `claw.decode_request`
        judge, and their words are the error. It never refuses anything itself.
Rule 2: what it does take, the careful way takes too, and the request is equal (a property test holds them together). So every
        bound of the careful way stands here as a type: the shape bounds the depth, the length bounds the number of values.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from clawproxy.dialects import jsonio
from clawproxy.dialects.claw import MAX_DEADLINE_MS, NAME, checked_metadata, valid_id
from clawproxy.dialects.claw_parts import array
from clawproxy.messages import ChatRequest, Message

DEPTH: Final = 3
"""How deep a plain request nests at most."""
_LEFT_OUT: Any = None  # the default of a field that may be left out but may not be null
_MANY_DIGITS = re.compile(rb"[0-9]{19}")
_Word = Annotated[str, Meta(min_length=1)]
_Number = Annotated[int, Meta(ge=0, le=2)] | Annotated[float, Meta(ge=0, le=2)]
_Share = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]


class _Parameters(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] = _LEFT_OUT
    temperature: _Number = _LEFT_OUT
    top_p: _Share = _LEFT_OUT
    stop: _Word | Annotated[tuple[_Word, ...], Meta(max_length=16)] = ()
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = _LEFT_OUT
    stream: bool = True


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


_NONE: Final = _Parameters()


class Plain(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="llm_request", gc=False):
    """A request of the common shape, already checked but for `metadata` and how many messages are too many."""

    model: _Word
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    prompt: _Word | None = None
    messages: Annotated[list[_Turn], Meta(min_length=1)] | None = None
    system: str | None = None
    parameters: _Parameters | None = None
    metadata: dict[str, str] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=MAX_DEADLINE_MS)] | msgspec.UnsetType = msgspec.UNSET

    def deadline(self) -> float | None:
        """Seconds of `deadline_ms`."""
        return None if isinstance(self.deadline_ms, msgspec.UnsetType) else self.deadline_ms / 1000

    def request(self, max_messages: int = 100_000) -> ChatRequest:
        """As `claw.decode_request`. Raises ClawError("invalid_request")."""
        if self.messages is None:
            assert self.prompt is not None
            messages: tuple[Message, ...] = (Message("user", self.prompt),)
        else:
            turns = array(self.messages, "messages", max_messages)
            messages = tuple([Message(turn.role, turn.content) for turn in turns])
        if self.system is not None:
            messages = (Message("system", self.system), *messages)
        given = self.parameters or _NONE
        metadata: dict[str, Any] = {}
        user: str | None = None
        if self.metadata:
            metadata = checked_metadata(self.metadata)
            user = metadata.get("user_id")
        return ChatRequest(
            model=self.model,
            messages=messages,
            stream=given.stream,
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            stop=(given.stop,) if isinstance(given.stop, str) else given.stop,
            seed=given.seed,
            user=user,
            metadata=metadata,
            include_usage=True,
            dialect=NAME,
        )


_decode = msgspec.json.Decoder(Plain).decode


def plain(data: bytes) -> Plain | None:
    """A whole message, if it is a request of the common shape and all of it is in order."""
    if len(data) > jsonio.MAX_VALUES:
        return None
    try:
        frame = _decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None
    if (frame.prompt is None) is (frame.messages is None):
        return None
    if frame.id is not None and not valid_id(frame.id):
        return None
    if frame.metadata and b"\\u0000" in data:  # a NUL in a key
        return None
    given = frame.parameters
    if given is not None and (type(given.temperature) is float or type(given.top_p) is float) and _MANY_DIGITS.search(data):
        return None  # the careful way takes a long exponent for a long integer
    return frame
