"""A provider's Responses answer, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: an answer is complete at `response.completed` or `.incomplete`, and at nothing else. Ending before that is
        `provider_error.cut`.
Rule 3: a batch keeps the bytes of those of its events that the client may see: not comments, not errors.
Rule 4: what comes only at the end of an item (a provider that sends no deltas) is said then; what was said is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from clawproxy.dialects.figures import count, mapping, part_of, storable, tier_name
from clawproxy.dialects.openai_chat.provider_answer import MAX_BODY
from clawproxy.dialects.openai_chat.provider_chunk import _name
from clawproxy.dialects.openai_chat.provider_faults import classify
from clawproxy.dialects.openai_responses.provider_event import (
    Said,
    StreamEvent,
    decode_event,
    decode_response,
    item_events,
    kind_of_tool,
)
from clawproxy.dialects.openai_responses.tools import NAME
from clawproxy.dialects.sse import ServerEvent, SSEDecoder, TooLarge
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import (
    Batch,
    Begin,
    End,
    Event,
    Failed,
    Finish,
    FinishReason,
    KeepAlive,
    Opaque,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.messages import ChatRequest, Usage

INCOMPLETE: Mapping[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}
_TEXTS: Mapping[str, type[Text | Refused | Reasoning]] = {
    "response.output_text.delta": Text,
    "response.refusal.delta": Refused,
    "response.reasoning_summary_text.delta": Reasoning,
    "response.reasoning_text.delta": Reasoning,
}
_WHOLE_TEXTS: Mapping[str, type[Text | Refused | Reasoning]] = {
    name.removesuffix("delta") + "done": kind for name, kind in _TEXTS.items()
}
_ARGUMENTS = frozenset({"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"})
_WHOLE_ARGUMENTS = frozenset({"response.function_call_arguments.done", "response.custom_tool_call_input.done"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


class StreamDecoder:
    """Server-sent events."""

    def __init__(self, request: ChatRequest) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._begun = self._failed = False
        self._said: dict[int, Said] = {}
        """The items under way, by `output_index`."""
        self._calls = 0

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        try:
            blocks = self._sse.feed(data)
        except TooLarge:
            return Batch([self._fail(ProviderFault("provider_error.malformed"))], raw=b"", dialect=NAME)
        if not blocks:
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        for block in blocks:
            if self._block(block, events):
                wires.append(block.wire)
            if self._over():
                break
        return Batch(events, raw=wires[0] if len(wires) == 1 else b"".join(wires), dialect=NAME)

    def _block(self, block: ServerEvent, events: list[Event]) -> bool:
        """Append what one server-sent event says; whether its bytes may go to the client."""
        data = block.data
        if data is None:
            events.append(KeepAlive())
            return False
        if data[:6] == b"[DONE]":
            return False  # some add it; it ends nothing here
        try:
            event = decode_event(data)
            if not block.wire.isascii():
                block.wire.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return False
        kind = event.type or block.name.decode("latin-1")
        make = _TEXTS.get(kind)
        if make is not None:
            if isinstance(event.delta, str) and event.delta:
                self._item(event.output_index).heard.add(event.place())
                events.append(make(event.delta))
            return True
        if kind in _ARGUMENTS:
            self._arguments(event.output_index, event.delta, events)
            return True
        if kind in _WHOLE_TEXTS:
            self._whole_text(event, _WHOLE_TEXTS[kind], events)
        elif kind in _WHOLE_ARGUMENTS:
            said = self._item(event.output_index)
            text = event.input if event.arguments is None else event.arguments
            if isinstance(text, str) and said.named:
                self._arguments(event.output_index, text[said.arguments :], events)
        if kind in _ENDS:
            return self._end(kind, event.response, events)
        if kind == "error" or (event.error and not kind.startswith("response.")):
            events.append(self._fail(classify(event.error or msgspec.json.decode(data))))
            return False
        if kind in ("response.created", "response.in_progress", "response.queued"):
            self._begin(event.response, events)
        elif kind == "response.output_item.added":
            self._added(event.output_index, event.item, events)
        elif kind == "response.output_item.done":
            self._item_done(event.output_index, event.item, events)
        elif kind == "response.reasoning_summary_part.added":
            if type(event.summary_index) is int and event.summary_index > 0:
                events.append(Reasoning("\n\n"))
        elif (tool := kind_of_tool(kind)) is not None:
            events.append(Opaque(tool, data if kind.endswith(".delta") else None))
        elif kind.endswith(".delta") and isinstance(event.delta, str):
            events.append(Opaque(kind[:64], data))  # a text in pieces that nobody knows yet: policies follow it
        return kind.startswith("response.")  # what is no event of this format (a ping of their own) is not for the client

    def _begin(self, response: Any, events: list[Event]) -> None:
        if not self._begun and isinstance(response, dict):
            self._begun = True
            events.append(Begin(_name(response.get("model")), _name(response.get("id"))))

    def _item(self, index: Any) -> Said:
        place = index if type(index) is int else 0
        said = self._said.get(place)
        if said is None:
            said = self._said[place] = Said()
        return said

    def _call(self, said: Said) -> int:
        if said.call is None:
            said.call, self._calls = self._calls, self._calls + 1
        return said.call

    def _whole_text(self, event: StreamEvent, make: type[Text | Refused | Reasoning], events: list[Event]) -> None:
        heard, text = self._item(event.output_index).heard, event.refusal if make is Refused else event.text
        if event.place() not in heard and isinstance(text, str) and text:
            heard.add(event.place())
            events.append(make(text))

    def _arguments(self, index: Any, delta: Any, events: list[Event]) -> None:
        if isinstance(delta, str) and delta:
            said = self._item(index)
            said.arguments += len(delta)
            events.append(ToolCallDelta(self._call(said), None, None, delta))

    def _added(self, index: Any, item: Any, events: list[Event]) -> None:
        fields = mapping(item)
        kind = fields.get("type")
        if kind in ("function_call", "custom_tool_call"):
            said = self._item(index)
            said.named = True
            events.extend(item_events(fields, self._call(said), Said()))
            text = fields.get("arguments") or fields.get("input")
            said.arguments = len(text) if isinstance(text, str) else 0
        elif isinstance(kind, str) and kind not in ("message", "reasoning"):
            events.append(Opaque(kind[:64]))

    def _item_done(self, index: Any, item: Any, events: list[Event]) -> None:
        fields = mapping(item)
        said = self._item(index)
        number = self._call(said) if fields.get("type") in ("function_call", "custom_tool_call") else 0
        events.extend(item_events(fields, number, said))

    def _end(self, kind: str, response: Any, events: list[Event]) -> bool:
        self._begin(response, events)
        fields = mapping(response)
        failure = end_events(kind.removeprefix("response."), fields, self._calls > 0, events)
        if failure is not None:
            events.append(self._fail(failure))
            return False
        self.done = True
        return True

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        batch = None
        if left:  # an event without its blank line: heard if it is whole
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
            if self._over() and batch is not None:
                last = batch.events[-1]
                if not isinstance(last, Failed) or last.error.slug != "provider_error.malformed":
                    return batch
                batch = None  # it was not malformed but cut
        events = [] if batch is None else list(batch.events)
        cut = self._fail(ProviderFault("provider_error.cut"))
        return Batch([*events, cut], raw=b"" if batch is None else batch.raw, dialect=NAME)


def end_events(status: Any, response: Mapping[str, Any], calls: bool, events: list[Event]) -> ClawError | None:
    """Append what the end of an answer says; where it failed, give the failure instead."""
    usage = read_usage(response.get("usage"), response.get("service_tier"))
    if usage is not None:
        events.append(UsageReport(usage))
    if status in ("failed", "cancelled"):
        return classify(response.get("error") or {})
    if status == "incomplete":
        reason = mapping(response.get("incomplete_details")).get("reason")
        word = reason if isinstance(reason, str) else None
        events.append(Finish(INCOMPLETE.get(word or "", "other"), word and word[:64]))
    elif status == "completed":
        events.append(Finish("tool_calls" if calls else "stop", "completed"))
    else:
        return ProviderFault("provider_error.malformed")
    events.append(End())
    return None


class WholeDecoder:
    """One `response` document, decoded when all of it is there."""

    def __init__(self, request: ChatRequest, limit: int = MAX_BODY) -> None:
        self.done = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = limit
        self._failed = False

    def feed(self, data: bytes) -> Batch | None:
        if self.done or self._failed:
            return None
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
            return self._fail(ProviderFault("provider_error.too_large"))
        return None

    def close(self) -> Batch | None:
        if self.done or self._failed:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            answer = decode_response(body)
            body.decode()
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            cut = str(error) == "Input data was truncated"
            return self._fail(ProviderFault("provider_error.cut" if cut else "provider_error.malformed"))
        if answer.get("error"):
            return self._fail(classify(answer["error"]))
        output = answer.get("output")
        events: list[Event] = [Begin(_name(answer.get("model")), _name(answer.get("id")))]
        calls = 0
        for item in output if isinstance(output, list) else ():
            fields = mapping(item)
            events.extend(item_events(fields, calls, Said()))
            if fields.get("type") in ("function_call", "custom_tool_call"):
                calls += 1
            elif isinstance(kind := fields.get("type"), str) and kind not in ("message", "reasoning"):
                events.append(Opaque(kind[:64]))
        failure = end_events(answer.get("status"), answer, calls > 0, events)
        if failure is not None:
            return self._fail(failure)
        self.done = True
        return Batch(events, raw=body, dialect=NAME)

    def _fail(self, error: ClawError) -> Batch:
        self._failed = True
        return Batch([Failed(error)], dialect=NAME)


def read_usage(said: Any, tier: Any = None) -> Usage | None:
    """The figures of a `usage` object; None where it has none. Parts of a whole are held to the whole."""
    if not isinstance(said, dict) or not said:
        return None
    spent, made = mapping(said.get("input_tokens_details")), mapping(said.get("output_tokens_details"))
    total_in, total_out = count(said.get("input_tokens")), count(said.get("output_tokens"))
    return Usage(
        total_in,
        total_out,
        part_of(total_in, count(spent.get("cached_tokens"))),
        part_of(total_in, count(spent.get("cache_write_tokens"))),
        part_of(total_out, count(made.get("reasoning_tokens"))),
        raw=storable(said),
        audio_input_tokens=part_of(total_in, count(spent.get("audio_tokens"))),
        audio_output_tokens=part_of(total_out, count(made.get("audio_tokens"))),
        image_input_tokens=part_of(total_in, count(spent.get("image_tokens"))),
        image_output_tokens=part_of(total_out, count(made.get("image_tokens"))),
        service_tier=tier_name(tier),
    )
