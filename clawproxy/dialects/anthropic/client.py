"""The client side: Anthropic SDKs, Claude Code, and everything that speaks like them."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.anthropic.client_answer import StreamEncoder
from clawproxy.dialects.anthropic.client_request import decode_request
from clawproxy.dialects.anthropic.client_whole import CountEncoder, WholeEncoder
from clawproxy.dialects.anthropic.words import NAME, error_document
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest


class AnthropicClient:
    """`ClientDialect` for `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

    name = NAME
    request_id_header = "request-id"

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return decode_request(body, config_limits, head)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        if request.operation == "count_tokens":
            return CountEncoder()
        return StreamEncoder(exchange, request) if request.stream else WholeEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """`{"type": "error", "error": {"type", "message", "details"}, "request_id"}`: the last is the one in the log."""
        return jsonio.encode(error_document(error, request_id))
