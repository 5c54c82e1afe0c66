"""The client side: google-genai and everything that speaks like it."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.dialects.gemini.client_error import error_object
from clawproxy.dialects.gemini.client_request import decode_request
from clawproxy.dialects.gemini.client_stream import StreamEncoder
from clawproxy.dialects.gemini.client_whole import CountEncoder, EmbeddingEncoder, WholeEncoder
from clawproxy.dialects.gemini.names import NAME
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest


class GeminiClient:
    """`ClientDialect` for `POST /v1beta/models/NAME:METHOD`."""

    name = NAME

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return decode_request(body, config_limits, head)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        if request.operation == "count_tokens":
            return CountEncoder(exchange, request)
        if request.operation == "embeddings":
            return EmbeddingEncoder(exchange, request)
        return StreamEncoder(exchange, request) if request.stream else WholeEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """`{"error": {"code", "message", "status", "details"}}`; RequestInfo holds the id that is in the log."""
        return jsonio.encode({"error": error_object(error, request_id)})
