"""Gemini's answers, from bytes to batches.

Rule 1: broken bytes are a `Failed` event, never an exception; after it, nothing more is decoded.
Rule 2: a stream has no terminal marker: the body's end is one, if a finish reason was seen or the prompt refused; otherwise the
        answer is `provider_error.cut`.
Rule 3: a batch's bytes are its events as Google writes them (`data: {...}` CR LF CR LF), whatever line ends they came with, and
        nothing else: no comments, no errors.
"""

from __future__ import annotations

import msgspec

from clawproxy.dialects.figures import count, part_of, storable
from clawproxy.dialects.gemini.client_stream import BREAK
from clawproxy.dialects.gemini.names import NAME
from clawproxy.dialects.gemini.provider_answer import Document, Reader, decode, read_usage
from clawproxy.dialects.gemini.provider_faults import classify, error_of
from clawproxy.dialects.openai_chat.provider_answer import MAX_BODY
from clawproxy.dialects.sse import ServerEvent, SSEDecoder, TooLarge
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, Embedding, End, Event, Failed, KeepAlive, UsageReport
from clawproxy.messages import ChatRequest, Usage


class StreamDecoder:
    """Server-sent events."""

    def __init__(self, request: ChatRequest) -> None:
        self.done = False
        self._sse = SSEDecoder()
        self._reader = Reader(request)
        self._failed = False

    def _over(self) -> bool:
        return self.done or self._failed

    def feed(self, data: bytes) -> Batch | None:
        if self._over():
            return None
        events: list[Event] = []
        wires: list[bytes] = []
        try:
            blocks = self._sse.feed(data)
        except TooLarge:
            return Batch([self._fail(ProviderFault("provider_error.malformed"))], dialect=NAME)
        for block in blocks:
            if self._block(block, events):
                assert block.data is not None
                wires.append(b"data: " + block.data.replace(b"\n", b"\r\ndata: ") + BREAK)
            if self._over():
                break
        return Batch(events, raw=b"".join(wires), dialect=NAME) if events else None

    def _block(self, block: ServerEvent, events: list[Event]) -> bool:
        """Append what one server-sent event says; whether its bytes may go to the client."""
        data = block.data
        if data is None:
            events.append(KeepAlive())
            return False
        try:
            document = decode(data)
            if not data.isascii():
                data.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError):
            events.append(self._fail(ProviderFault("provider_error.malformed")))
            return False
        if document.error:
            events.append(self._fail(classify(document.error)))
            return False
        before = len(events)
        self._reader.read(document, events)
        if len(events) == before:
            events.append(KeepAlive())  # it said nothing that the vocabulary has a word for
        return True

    def _fail(self, error: ClawError) -> Failed:
        self._failed = True
        return Failed(error)

    def close(self) -> Batch | None:
        if self._over():
            return None
        left = self._sse.close().strip(b"\r\n")
        batch = None
        if left[:1] in (b"{", b"["):  # an error is a document of its own, without the framing of an event
            error = error_of(left)
            slug = "provider_error.cut" if error is None else "provider_error.malformed"
            fault = classify(error) if isinstance(error, dict) and "code" in error else ProviderFault(slug)
            return Batch([self._fail(fault)], dialect=NAME)
        if left:  # an event without its blank line: heard if it is whole
            self._sse = SSEDecoder()
            batch = self.feed(left + b"\n\n")
            if self._over():
                assert batch is not None
                last = batch.events[-1]
                if isinstance(last, Failed) and last.error.slug != "provider_error.malformed":
                    return batch
                self._failed = False  # it was not malformed but cut
                return Batch([*batch.events[:-1], self._fail(ProviderFault("provider_error.cut"))], raw=batch.raw, dialect=NAME)
        self.done = self._reader.finished
        last_event = End() if self.done else self._fail(ProviderFault("provider_error.cut"))
        events = [] if batch is None else list(batch.events)
        return Batch([*events, last_event], raw=b"" if batch is None else batch.raw, dialect=NAME)


class _WholeDecoder:
    """One document, decoded when all of it is there."""

    def __init__(self, request: ChatRequest, limit: int = MAX_BODY) -> None:
        self.done = False
        self._request = request
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
            if not body.isascii():
                body.decode()
            events = self._events(body)
        except ProviderFault as error:
            return self._fail(error)
        except (msgspec.DecodeError, ValueError, RecursionError) as problem:
            cut = str(problem) == "Input data was truncated"
            return self._fail(ProviderFault("provider_error.cut" if cut else "provider_error.malformed"))
        self.done = True
        return Batch([*events, End()], raw=body, dialect=NAME)

    def _events(self, body: bytes) -> list[Event]:
        """Raises ProviderFault, msgspec.DecodeError, ValueError, RecursionError."""
        raise NotImplementedError

    def _document(self, body: bytes) -> Document:
        document = decode(body)
        if document.error:
            raise classify(document.error)
        return document

    def _fail(self, error: ClawError) -> Batch:
        self._failed = True
        return Batch([Failed(error)], dialect=NAME)


class WholeDecoder(_WholeDecoder):
    """GenerateContentResponse."""

    def _events(self, body: bytes) -> list[Event]:
        events: list[Event] = []
        reader = Reader(self._request)
        reader.read(self._document(body), events)
        if not reader.finished and not any(not isinstance(event, UsageReport) for event in events[1:]):
            raise ProviderFault("provider_error.malformed")  # neither a candidate nor a reason why there is none
        return events


class CountDecoder(_WholeDecoder):
    """CountTokensResponse."""

    def _events(self, body: bytes) -> list[Event]:
        document = self._document(body)
        total = count(document.total_tokens)
        if total is None:
            raise ProviderFault("provider_error.malformed")
        cached = part_of(total, count(document.cached_content_token_count))
        return [UsageReport(Usage(total, None, cached, raw=storable(msgspec.json.decode(body))))]


class _Vector(msgspec.Struct, gc=False):
    values: tuple[float, ...]


class _Vectors(msgspec.Struct, gc=False, rename="camel"):
    embeddings: list[_Vector] | None = None
    embedding: _Vector | None = None
    usage_metadata: object = None


_decode_vectors = msgspec.json.Decoder(_Vectors).decode


class EmbeddingDecoder(_WholeDecoder):
    """BatchEmbedContentsResponse: as many vectors as there were inputs, in their order."""

    def _events(self, body: bytes) -> list[Event]:
        self._document(body)
        said = _decode_vectors(body)
        vectors = said.embeddings or ([said.embedding] if said.embedding is not None else [])
        if len(vectors) != len(self._request.messages):
            raise ProviderFault("provider_error.malformed")
        events: list[Event] = [Embedding(index, vector.values) for index, vector in enumerate(vectors)]
        usage = read_usage(said.usage_metadata)
        return events if usage is None else [*events, UsageReport(usage)]
