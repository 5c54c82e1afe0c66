"""Embeddings, the client side: `POST /v1/embeddings`.

Rule 1: each input is a user message, so that policies see, and meters count, all that a model would read.
Rule 2: tokens instead of text stay in `extra["input"]`, for providers of the same dialect; the message is empty then.
Rule 3: the client gets its vectors in the form it asked for (`encoding_format`), whichever the provider's is: the provider's
        own document where it has that form, else one made anew.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping
from typing import Any

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_answer import NAME, error_object
from clawproxy.dialects.openai_chat.client_request import FORBIDDEN
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, Embedding, Outcome, UsageReport
from clawproxy.http1.head import Head
from clawproxy.messages import EMPTY, ChatRequest, Message, Usage

MAX_DIMENSIONS = 2**20
MAX_TOKEN = 2**31 - 1
_KNOWN = frozenset({"model", "input", "user"})


class OpenAIEmbeddingsClient:
    """`ClientDialect` for `POST /v1/embeddings`. Its requests are of the dialect `openai_chat` (docs/decisions/0007)."""

    name = "openai_embeddings"

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return decode_request(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> EmbeddingsEncoder:
        return EmbeddingsEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        return jsonio.encode({"error": error_object(error), "request_id": request_id})


def decode_request(body: bytes, limits: Mapping[str, int]) -> ChatRequest:
    """One request. `limits` as for chat; `messages` bounds the inputs.

    Raises:
        ClawError: `invalid_json`, `json_too_deep`, `invalid_request`, `unknown_parameter`; the last two with `param`.
    """
    fields = jsonio.decode(body, depth=limits.get("json_depth", 64))
    if not isinstance(fields, dict):
        raise ClawError("invalid_request", "The body must be a JSON object.")
    for name in sorted((FORBIDDEN | {"stream", "messages"}) & fields.keys()):
        raise ClawError("unknown_parameter", f"`{name}` is not a parameter of this API.", param=name)
    model = check.text(check.need(fields, "model", ""), "model")
    if not model:
        check.refuse("model", "not be empty")
    extra = check.beyond(fields, _KNOWN)
    if extra.get("encoding_format") not in (None, "float", "base64"):
        check.refuse("encoding_format", "be float or base64")
    if extra.get("dimensions") is not None:
        check.integer(extra["dimensions"], "dimensions", 1, MAX_DIMENSIONS)
    user = fields.get("user")
    return ChatRequest(
        model=model,
        messages=_inputs(check.need(fields, "input", ""), limits.get("messages", 100_000), extra),
        user=None if user is None else check.token(user, "user", longest=256, empty=True),
        dialect=NAME,
        extra=extra or EMPTY,
        operation="embeddings",
    )


def _inputs(value: Any, most: int, extra: dict[str, Any]) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    right = "be a string, an array of strings, or tokens"
    if not isinstance(value, list):
        check.refuse("input", right)
    if not value:
        check.refuse("input", "not be empty")
    if isinstance(value[0], str):
        items = check.array(value, "input", longest=most)
        return tuple([Message("user", check.text(item, f"input[{place}]")) for place, item in enumerate(items)])
    several = isinstance(value[0], list)
    lists = check.array(value, "input", longest=most) if several else [value]
    for place, tokens in enumerate(lists):
        where = f"input[{place}]" if several else "input"
        if not isinstance(tokens, list) or not tokens or not all(type(each) is int and 0 <= each <= MAX_TOKEN for each in tokens):
            check.refuse(where, "hold tokens: integers from 0" if several else right)
    extra["input"] = value
    return tuple([Message("user", "") for _ in lists])


class EmbeddingsEncoder:
    """One list of vectors."""

    content_type = "application/json"

    def __init__(self, exchange: Exchange, request: ChatRequest) -> None:
        self.model = exchange.requested_model or request.model
        self.asked: type = str if request.extra.get("encoding_format") == "base64" else tuple
        self.batches: list[Batch] = []

    def encode(self, batch: Batch) -> bytes:
        self.batches.append(batch)
        return b""

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Raises ProviderFault("provider_error.malformed") for base64 that is none, and where there is no vector at all."""
        events = [event for batch in self.batches for event in batch.events]
        vectors = sorted([event for event in events if isinstance(event, Embedding)], key=lambda vector: vector.index)
        if not vectors:
            raise ProviderFault("provider_error.malformed")
        raws = [batch.raw for batch in self.batches if batch.dialect == NAME and batch.raw]
        if len(raws) == len(self.batches) == 1 and all(type(vector.values) is self.asked for vector in vectors):
            return raws[0]  # the provider's own document, untouched
        reported = [event.usage for event in events if isinstance(event, UsageReport)]
        figures = usage or (reported[-1] if reported else None)
        count = figures.input_tokens if figures is not None else None
        return jsonio.encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": vector.index, "embedding": converted(vector.values, self.asked)}
                    for vector in vectors
                ],
                "model": self.model,
                "usage": None if count is None else {"prompt_tokens": count, "total_tokens": count},
            }
        )

    def fail(self, error: ClawError) -> bytes:
        """Not used: a whole answer that fails is an `error_body` with a status."""
        return b""

    def keepalive(self) -> bytes:
        return b""


def converted(values: tuple[float, ...] | str, form: type) -> tuple[float, ...] | str:
    """A vector as `form`: a tuple of floats, or a string of base64 of little-endian float32.

    Raises:
        ProviderFault: provider_error.malformed, for base64 that is none, and for numbers that float32 can not hold.
    """
    if type(values) is form:
        return values
    try:
        if isinstance(values, str):
            data = base64.b64decode(values, validate=True)
            floats = struct.unpack(f"<{len(data) // 4}f", data)
            if not all(map(math.isfinite, floats)):
                raise ValueError("JSON has no such number")
            return floats
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    except (binascii.Error, struct.error, OverflowError, ValueError):
        raise ProviderFault("provider_error.malformed") from None
