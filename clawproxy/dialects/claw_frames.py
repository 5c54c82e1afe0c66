"""The server's frames of the Claw WebSocket format, as JSON payloads. Re-exported by `dialects.claw`; rules are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from clawproxy.context import Exchange, Timing
from clawproxy.dialects.jsonio import encode
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Begin, Event, Notice, Outcome, Reasoning, Refused, Text, ToolCallDelta
from clawproxy.messages import Principal, Usage

_OTHERS = frozenset({Refused, Reasoning, ToolCallDelta})
"""The content besides `Text`."""
_APART = 512
"""Texts kept apart before they are joined to one, once: a string of its own for each token is more than its text."""
_FINISH = {"complete": "stop", "truncated": "length", "cancelled": "cancelled"}


def mend(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD: what UTF-8 can not carry (W-18)."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def json_text(text: str) -> bytes:
    """A JSON string, in UTF-8, whatever the text holds."""
    try:
        return encode(text)
    except UnicodeEncodeError:
        return encode(mend(text))


def dumps(value: Any) -> bytes:
    """Any JSON value, lone surrogates replaced."""
    try:
        return encode(value)
    except UnicodeEncodeError:
        return encode(_mended(value))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, Mapping):
        return {mend(str(key)): _mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(item) for item in value]
    return value


# --- frames of the connection ------------------------------------------------------------------------------------------------


def error_fields(error: ClawError) -> dict[str, Any]:
    """`code`, `error`, `message`, `retryable` and what the occasion adds; every one is safe to show."""
    details = error.details
    fields: dict[str, Any] = {
        "code": error.status,
        "error": error.slug,
        "message": error.message,
        "retryable": error.retryable,
    }
    for name in ("param", "retry_after_ms", "clock", "limit_ms", "setting", "provider", "provider_status", "policy"):
        value = getattr(details, name)
        if value is not None:
            fields[name] = value
    if details.extra:
        fields["details"] = dict(details.extra)
    return fields


def error(failure: ClawError, ref: str | None = None) -> bytes:
    """An error about the connection or about one frame of it. `ref` repeats the id that frame named: it is not called `id`,
    because an open request of that name goes on."""
    fields = {"type": "error"} | error_fields(failure)
    if ref is not None:
        fields["ref"] = ref
    return dumps(fields)


def auth_ok(
    session_id: str, principal: Principal, resume_token: str, limits: Mapping[str, int], server: Mapping[str, str]
) -> bytes:
    who = {"key": principal.key, "user": principal.user, "team": principal.team, "app": principal.app}
    fields: dict[str, Any] = {
        "type": "auth_ok",
        "session_id": session_id,
        "principal": {name: value for name, value in who.items() if value is not None},
        "resume_token": resume_token,
        "limits": dict(limits),
        "server": dict(server),
    }
    if principal.expires is not None:
        fields["expires_at"] = principal.expires
    return dumps(fields)


def pong(t: Any = None) -> bytes:
    """`t` comes back where it is a number or a short string."""
    if (isinstance(t, str) and len(t) <= 128) or (isinstance(t, int | float) and not isinstance(t, bool)):
        return dumps({"type": "pong", "t": t})
    return b'{"type":"pong"}'


def going_away(deadline_ms: int) -> bytes:
    return encode({"type": "going_away", "deadline_ms": deadline_ms})


# --- frames of one request ---------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What an answer has told its client since it was last asked for: the text, and the calls of tools that were begun."""

    text: str
    calls: Sequence[int]
    """Their indexes, as the client knows them."""


class Answer:
    """Encodes one request's frames, in order: `start`, `content` and `notice` as they come, then `end` or `error` once.

    Attributes:
        seq: the number of the next frame.
        started: `llm_response_start` was made.
    """

    __slots__ = ("_base", "_calls", "_earlier", "_head", "_said", "seq", "started")

    def __init__(self, ident: str, request_id: str) -> None:
        self._head = b",".join((b'"id":' + json_text(ident), b'"request_id":' + encode(request_id), b'"seq":'))
        self.seq = 0
        self.started = False
        self._said: list[str] = []
        """The text of `llm_token` since `said` was last called, behind what is in `_earlier`."""
        self._earlier: list[str] = []
        self._calls: dict[int, str | None] | None = None
        """The ids of the calls begun since then, by the client's indexes."""
        self._base = 0
        """What is added to a provider's index: an answer that was begun anew counts its calls from 0 again."""

    def said(self) -> Said:
        """What it said since it was last asked. The calls begun are void from here on: those to come get other indexes."""
        calls = sorted(self._calls or ())
        said = Said("".join([*self._earlier, *self._said]), calls)
        self._earlier.clear()
        self._said.clear()
        self._calls = None
        if calls:
            self._base = calls[-1] + 1
        return said

    def _frame(self, kind: bytes, body: bytes) -> bytes:
        """`{"type":KIND,"id":..,"request_id":..,"seq":N,BODY}`"""
        seq = self.seq
        self.seq = seq + 1
        return b'{"type":"%b",%b%d,%b}' % (kind, self._head, seq, body)

    def start(self, exchange: Exchange, events: Sequence[Event]) -> bytes:
        """`model` is what the provider called itself in `events`, else what it was asked for."""
        self.started = True
        route = exchange.route
        begun = next((event.model for event in events if type(event) is Begin and event.model), None)
        fields: dict[str, Any] = {"model": begun or (route.model if route else exchange.requested_model)}
        if route is not None:
            fields["provider"] = route.provider
            attempts = exchange.attempts
            number = len(attempts) if attempts and attempts[-1].route is route else _number(exchange)
            fields["route"] = {"strategy": route.strategy, "reason": route.reason, "attempt": number}
        return self._frame(b"llm_response_start", dumps(fields)[1:-1])

    def content(self, batch: Batch) -> list[bytes]:
        """The frames of one batch: neighbouring texts are one `llm_token`."""
        events = batch.events
        if _OTHERS.isdisjoint(map(type, events)):  # by far the most common: 50 tokens in 3.4 us, below in 10.5
            texts = [event.text for event in events if type(event) is Text]
            return [self._token("".join(texts))] if texts else []
        return [self._content(group, batch.dialect) for group in grouped(events)]

    def _token(self, text: str) -> bytes:
        said = self._said
        said.append(text)
        if len(said) > _APART:
            self._earlier.append("".join(said))
            said.clear()
        return self._frame(b"llm_token", b'"content":' + json_text(text))

    def _content(self, group: Sequence[Event], dialect: str) -> bytes:
        """One of `grouped`."""
        last = group[-1]
        if isinstance(last, ToolCallDelta):
            return self._frame(b"llm_tool_call", dumps(self._tool_call(last))[1:-1])
        text = "".join([event.text for event in group if isinstance(event, Text | Refused | Reasoning)])
        if not isinstance(last, Reasoning):
            return self._token(text)
        if last.signature is last.data is None:
            return self._frame(b"llm_reasoning", b'"content":' + json_text(text))
        named = {"signature": last.signature, "data": last.data, "reasoning_id": last.id, "dialect": dialect or None}
        fields = {"content": text} | {name: value for name, value in named.items() if value is not None}
        return self._frame(b"llm_reasoning", dumps(fields)[1:-1])

    def _tool_call(self, event: ToolCallDelta) -> dict[str, Any]:
        """`call_id` stands in each frame; providers say it once."""
        if self._calls is None:
            self._calls = {}
        index = self._base + event.index
        call_id = self._calls[index] = event.call_id or self._calls.get(index)
        fields: dict[str, Any] = {"index": index, "call_id": call_id}
        if event.name is not None:
            fields["name"] = event.name
        fields["arguments"] = event.arguments
        if event.signature is not None:
            fields["signature"] = event.signature
        return fields

    def notice(self, notice: Notice) -> bytes:
        fields = {"code": notice.code, "message": notice.message, "details": dict(notice.details)}
        return self._frame(b"llm_notice", dumps(fields)[1:-1])

    def end(
        self, exchange: Exchange | None, outcome: Outcome, usage: Usage | None, receipt: Mapping[str, Any] | None = None
    ) -> bytes:
        fields: dict[str, Any] = {
            "finish_reason": outcome.finish or _FINISH.get(outcome.label, "other"),
            "outcome": outcome.label,
        }
        if usage is not None:
            fields["usage"] = {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cached_tokens": usage.cached_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
                "total_tokens": usage.total_tokens,
                "source": usage.source,
            }
        if exchange is not None:
            if exchange.cost_nano is not None:
                source = "estimated" if usage is None or usage.source == "estimated" else "measured"
                fields["cost"] = {"usd": msgspec.Raw(dollars(exchange.cost_nano)), "source": source}
            fields["timing_ms"] = _timing(exchange)
        if receipt is not None:
            fields["receipt"] = dict(receipt)
        return self._frame(b"llm_response_end", dumps(fields)[1:-1])

    def error(self, failure: ClawError) -> bytes:
        return self._frame(b"error", dumps(error_fields(failure))[1:-1])


def billed(exchange: Exchange) -> dict[str, Any]:
    """What a request that was cancelled comes to: nothing where no provider was asked, None where it is not known."""
    usage, cost = exchange.usage, exchange.cost_nano
    if usage is None and not any(attempt.sent for attempt in exchange.attempts):
        return {"input_tokens": 0, "output_tokens": 0, "usd": 0, "source": "measured"}
    return {
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "usd": None if cost is None else msgspec.Raw(dollars(cost)),
        "source": "estimated" if usage is None else usage.source,
    }


def _number(exchange: Exchange) -> int:
    """Of the attempt that answers, where it is not the last: it has beaten that one."""
    return next((attempt.number for attempt in exchange.attempts if attempt.route is exchange.route), 1)


def grouped(events: Sequence[Event]) -> list[list[Event]]:
    """The content among `events`, by the frames it makes: neighbouring texts are one, so are pieces of reasoning up to the one
    that is signed, and each piece of a call stands alone."""
    groups: list[list[Event]] = []
    before: object = None
    for event in events:
        kind: object
        if isinstance(event, Text | Refused):
            kind = Text
        elif isinstance(event, Reasoning):
            kind = Reasoning
        elif isinstance(event, ToolCallDelta):
            kind = None
        else:
            continue
        if kind is not None and kind is before:
            groups[-1].append(event)
        else:
            groups.append([event])
        signed = isinstance(event, Reasoning) and not event.signature is event.data is None
        before = None if signed else kind
    return groups


def _timing(exchange: Exchange) -> Mapping[str, float]:
    """The phases; `total` is set before the last frame is made."""
    timing: Timing = exchange.timing
    return timing.milliseconds()


def dollars(nano: int) -> bytes:
    """Nano-dollars as a decimal number of dollars, exact: b"0.00125"."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, 1_000_000_000)
    digits = f"{part:09d}".rstrip("0") or "0"
    return f"{sign}{whole}.{digits}".encode()


class Whole:
    """Collects a request without `stream`: its text, reasoning and tool calls come out as one batch."""

    __slots__ = ("_calls", "_dialect", "_taken", "_texts", "_thoughts", "begin")

    def __init__(self) -> None:
        self.begin: Begin | None = None
        self._texts: list[str] = []
        self._taken = 0
        """How many of them `said` has given away."""
        self._thoughts: list[Reasoning] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._dialect = ""

    def add(self, batch: Batch) -> None:
        self._dialect = batch.dialect or self._dialect
        for event in batch.events:
            if isinstance(event, Text | Refused):
                self._texts.append(event.text)
            elif isinstance(event, Reasoning):
                self._thoughts.append(event)
            elif isinstance(event, ToolCallDelta):
                self._calls.setdefault(event.index, []).append(event)
            elif isinstance(event, Begin) and self.begin is None:
                self.begin = event

    def said(self) -> Said:
        """As `Answer.said`. The client has heard nothing of the calls yet, so they are only forgotten."""
        text = "".join(self._texts[self._taken :])
        self._taken = len(self._texts)
        self._calls.clear()
        return Said(text, ())

    def batch(self) -> Batch:
        events: list[Event] = [self.begin] if self.begin is not None else []
        for group in grouped(self._thoughts):  # a model reasons before it speaks
            pieces = [event for event in group if isinstance(event, Reasoning)]
            last = pieces[-1]
            events.append(Reasoning("".join([piece.text for piece in pieces]), last.signature, last.data, last.id))
        if self._texts:
            events.append(Text("".join(self._texts)))
        for index, deltas in sorted(self._calls.items()):
            call_id = next((delta.call_id for delta in deltas if delta.call_id), None)
            name = next((delta.name for delta in deltas if delta.name), None)
            signature = next((delta.signature for delta in deltas if delta.signature), None)
            events.append(ToolCallDelta(index, call_id, name, "".join([delta.arguments for delta in deltas]), signature))
        return Batch(events, dialect=self._dialect)
