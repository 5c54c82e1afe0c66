"""Embeddings, the provider side: a `ChatRequest` as a body for `POST {base_url}/embeddings`, and what comes back.

Rule 1: `extra["input"]` holds what is no text (tokens); it is sent as it came, and only to a host of the same dialect.
Rule 2: vectors are read in whichever form they come, floats or base64: some hosts do not mind `encoding_format`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import evolve
from msgspec import Struct

from clawproxy.dialects.openai_chat.provider_answer import MAX_BODY, read_usage
from clawproxy.dialects.openai_chat.provider_chunk import begin
from clawproxy.dialects.openai_chat.provider_faults import classify
from clawproxy.dialects.openai_chat.provider_request import NAME, NO_PLACE, adapt_fields, encode
from clawproxy.dialects.profiles import DEFAULT, Profile
from clawproxy.dialects.translate import dropped_notice, leftovers
from clawproxy.errors import ProviderFault
from clawproxy.events import Batch, Embedding, End, Event, Failed, Notice, UsageReport
from clawproxy.messages import ChatRequest, Route


def encode_embeddings(request: ChatRequest, route: Route, profile: Profile = DEFAULT) -> tuple[bytes, tuple[Notice, ...]]:
    """The body, and what the client should know. Raises ClawError("unsupported_parameter")."""
    same = request.dialect == NAME
    notices = leftovers(request, NAME, NO_PLACE)
    body: dict[str, Any] = dict(request.extra) if same else {}
    body["model"] = route.model
    body.setdefault("input", [message.text() for message in request.messages])
    if same and request.user is not None:
        body["user"] = request.user
    if profile.fields:
        notices += tuple([dropped_notice(name) for name in adapt_fields(body, profile)])
    return encode(body), notices


class _Vector(Struct, gc=False):
    embedding: tuple[float, ...] | str
    index: int | None = None


class _Vectors(Struct, gc=False):
    data: list[_Vector] | None = None
    model: Any = None
    id: Any = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Vectors).decode


class EmbeddingsDecoder:
    """One list of vectors, decoded when all of it is there."""

    def __init__(self, limit: int = MAX_BODY) -> None:
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
            answer = _decode(body)
            if not body.isascii():
                body.decode()  # msgspec does not look into fields it skips; a client would
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            cut = str(error) == "Input data was truncated"
            return self._fail(ProviderFault("provider_error.cut" if cut else "provider_error.malformed"))
        if answer.error:
            return self._fail(classify(answer.error))
        if not answer.data:
            return self._fail(ProviderFault("provider_error.malformed"))
        events: list[Event] = [begin(answer)]
        for place, vector in enumerate(answer.data):
            events.append(Embedding(place if vector.index is None else vector.index, vector.embedding))
        usage = read_usage(answer.usage)
        if usage is not None:
            # The format has no figure for it, for there is nothing to count.
            events.append(UsageReport(evolve(usage, output_tokens=0) if usage.output_tokens is None else usage))
        events.append(End())
        self.done = True
        return Batch(events, raw=body, dialect=NAME)

    def _fail(self, fault: ProviderFault) -> Batch:
        self._failed = True
        return Batch([Failed(fault)], dialect=NAME)
