"""A provider's Chat Completions answer, from bytes to events.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream is complete at `[DONE]`, or where it ends after a finish reason: some providers send no `[DONE]`. Ending before
        both is `provider_error.cut`.
Rule 3: a batch keeps the bytes of those of its events that the client may see. It may not see comments, error chunks, or the
        usage chunk that the gateway asked for and the client did not.
Rule 4: a figure that can not be is None, and stays readable in `Usage.raw` (B-09).
"""

from __future__ import annotations

from typing import Any

import msgspec

from clawproxy.dialects.figures import count, mapping, part_of, storable, tier_name
from clawproxy.dialects.openai_chat.client_answer import DONE, NAME
from clawproxy.dialects.openai_chat.provider_alike import Alike
from clawproxy.dialects.openai_chat.provider_chunk import begin, content_events, decode, decode_first, decode_tier, finish
from clawproxy.dialects.openai_chat.provider_faults import classify
from clawproxy.dialects.sse import MAX_EVENT, ServerEvent, SSEDecoder, TooLarge
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, End, Event, Failed, KeepAlive, Text, UsageReport
from clawproxy.messages import ChatRequest, Usage

MAX_BODY = 64 * 1024 * 1024


class StreamDecoder:
    """Server-sent events. `include_usage`: the client asked for the usage chunk."""

    def __init__(self, request: ChatRequest) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._alike = Alike()
        self._include_usage = request.include_usage
        self._begun = self._finished = self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self.done or self._failed:
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        heard, place, size = False, 0, len(data)
        while place < size:
            if self._sse.idle and size <= MAX_EVENT:
                end = self._alike.read(data, place, events)
                if end > place:
                    wires.append(data[place:end])
                    heard, place = True, end
                    continue
            # One event alone, where one begins, for those after it may be like it; else all there is.
            end = data.find(b"\n\n", place) + 2 if data.startswith(b"data: ", place) else 0
            end = end if end > 1 else size
            try:
                blocks = self._sse.feed(data[place:end])
            except TooLarge:
                return self._batch([self._fail(ProviderFault("provider_error.malformed"))], [])
            place = end
            for block in blocks:
                heard, before = True, len(events)
                if self._block(block, events):
                    wires.append(block.wire)
                    if self._alike.tries and len(events) == before + 1 and type(events[before]) is Text:
                        self._alike.study(block.wire)
                if self._over():
                    return self._batch(events, wires)
        return self._batch(events, wires) if heard else None

    def _batch(self, events: list[Event], wires: list[bytes]) -> Batch:
        if self.done:
            wires[-1] = DONE  # whatever its spelling was: encoders look for this one
        return Batch(events, raw=wires[0] if len(wires) == 1 else b"".join(wires), dialect=NAME)

    def _block(self, block: ServerEvent, events: list[Event]) -> bool:
        """Append what one server-sent event says; whether its bytes may go to the client."""
        data, wire, name, _ = block
        if data is None:
            events.append(KeepAlive())
            return False
        if data[:6] == b"[DONE]":
            self.done = True
            events.append(End())
            return True
        try:
            chunk = decode(data) if self._begun else decode_first(data)
            if not wire.isascii():
                wire.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return False
        if chunk.error or name == b"error":
            events.append(self._fail(classify(chunk.error or msgspec.json.decode(data))))
            return False
        if not self._begun:
            begun = begin(chunk)
            if chunk.choices or begun.id is not None:  # Azure's first chunk names nothing
                self._begun = True
                events.append(begun)
        if chunk.choices:
            for choice in chunk.choices:
                if choice.delta is not None:
                    content_events(choice.delta, events)
                if choice.finish_reason:
                    self._finished = True
                    events.append(finish(choice.finish_reason))
        if chunk.usage is not None:
            usage = read_usage(chunk.usage, decode_tier(data).service_tier)
            if usage is not None:
                events.append(UsageReport(usage))
                return self._include_usage or bool(chunk.choices)
        return chunk.choices is not None  # what is no chunk (a ping of their own) is not for the client

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        if left:  # an event without its blank line: heard if it is whole, for [DONE] and the last chunk often come so
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
            if not self._failed:
                return batch if self.done else self._ended(batch)
            assert batch is not None
            last = batch.events[-1]
            if isinstance(last, Failed) and last.error.slug != "provider_error.malformed":
                return batch
            self._failed = False  # it was not malformed but cut
        return self._ended(Batch([], raw=b"", dialect=NAME))

    def _ended(self, batch: Batch | None) -> Batch:
        """`batch` and, after it, the end that the provider did not mark, or the cut."""
        self.done = self._finished
        last = End() if self.done else self._fail(ProviderFault("provider_error.cut"))
        events = [] if batch is None else list(batch.events)
        return Batch([*events, last], raw=b"" if batch is None else batch.raw, dialect=NAME)


class WholeDecoder:
    """One `chat.completion` document, decoded when all of it is there."""

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
            return self._fail("provider_error.too_large")
        return None

    def close(self) -> Batch | None:
        if self.done or self._failed:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            answer = decode_first(body)
            body.decode()
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return self._fail("provider_error.cut" if str(error) == "Input data was truncated" else "provider_error.malformed")
        if answer.error:
            self._failed = True
            return Batch([Failed(classify(answer.error))], dialect=NAME)
        if not answer.choices:
            return self._fail("provider_error.malformed")
        events: list[Event] = [begin(answer)]
        for choice in answer.choices:
            if choice.message is not None:
                content_events(choice.message, events)
            if choice.finish_reason:
                events.append(finish(choice.finish_reason))
        usage = read_usage(answer.usage, answer.service_tier)
        if usage is not None:
            events.append(UsageReport(usage))
        events.append(End())
        self.done = True
        return Batch(events, raw=body, dialect=NAME)

    def _fail(self, slug: str) -> Batch:
        self._failed = True
        return Batch([Failed(ProviderFault(slug))], dialect=NAME)


# --- usage -----------------------------------------------------------------------------------------------------------------


def read_usage(said: Any, tier: Any = None) -> Usage | None:
    """The figures of a `usage` object; None where it has none. Parts of a whole are held to the whole. `tier`: the service tier,
    which stands beside it."""
    if not isinstance(said, dict) or not said:
        return None
    prompt = mapping(said.get("prompt_tokens_details"))
    completion = mapping(said.get("completion_tokens_details"))
    cached = prompt.get("cached_tokens", said.get("prompt_cache_hit_tokens"))  # the latter is DeepSeek's
    total_in, total_out = count(said.get("prompt_tokens")), count(said.get("completion_tokens"))
    thought = count(completion.get("reasoning_tokens")) if completion else None
    if thought and total_in is not None and total_out is not None and said.get("total_tokens") == total_in + total_out + thought:
        total_out += thought  # some count reasoning beside the answer (xAI, Gemini's OpenAI format), and the total says so
    return Usage(
        total_in,
        total_out,
        None if cached is None else part_of(total_in, count(cached)),
        part_of(total_in, count(prompt.get("cache_write_tokens"))) if prompt else None,
        part_of(total_out, thought),
        raw=storable(said),
        audio_input_tokens=part_of(total_in, count(prompt.get("audio_tokens"))) if prompt else None,
        audio_output_tokens=part_of(total_out, count(completion.get("audio_tokens"))) if completion else None,
        image_input_tokens=part_of(total_in, count(prompt.get("image_tokens"))) if prompt else None,
        image_output_tokens=part_of(total_out, count(completion.get("image_tokens"))) if completion else None,
        service_tier=tier_name(tier),
    )
