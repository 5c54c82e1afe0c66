"""The client side: OpenAI SDKs and Codex."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.dialects.openai_chat.client_answer import error_object
from clawproxy.dialects.openai_responses.client_answer import StreamEncoder, WholeEncoder
from clawproxy.dialects.openai_responses.client_request import decode_request
from clawproxy.dialects.openai_responses.tools import NAME
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest


class OpenAIResponsesClient:
    """`ClientDialect` for `POST /v1/responses`."""

    name = NAME

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return decode_request(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        return StreamEncoder(exchange, request) if request.stream else WholeEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """`{"error": {"message", "type", "param", "code"}, "request_id"}`: the last is the one in the log."""
        return jsonio.encode({"error": error_object(error), "request_id": request_id})
