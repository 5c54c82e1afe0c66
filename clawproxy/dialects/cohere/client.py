"""The client side: Cohere's SDKs, with the gateway's address as their `base_url`."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.context import Exchange
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.dialects.cohere import client_request
from clawproxy.dialects.cohere.client_answer import EmbedEncoder, StreamEncoder, WholeEncoder, error_document
from clawproxy.dialects.cohere.client_messages import NAME
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest


class CohereChat:
    """`ClientDialect` for `POST /v2/chat`."""

    name = NAME

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return client_request.decode_chat(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        return StreamEncoder(exchange, request) if request.stream else WholeEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """`{"id", "message"}`: the id is the one in the log."""
        return error_document(error, request_id)


class CohereEmbed(CohereChat):
    """`ClientDialect` for `POST /v2/embed`."""

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return client_request.decode_embed(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        return EmbedEncoder(exchange, request)
