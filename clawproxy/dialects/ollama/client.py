"""The client side: Ollama's SDKs, Open WebUI, and everything else that expects an Ollama at its address."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.context import Exchange
from clawproxy.dialects.base import AnswerEncoder
from clawproxy.dialects.ollama import client_request
from clawproxy.dialects.ollama.client_answer import NAME, EmbedEncoder, StreamEncoder, WholeEncoder, error_line
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest


class OllamaChat:
    """`ClientDialect` for `POST /api/chat`."""

    name = NAME

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return client_request.decode_chat(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        return StreamEncoder(exchange, request) if request.stream else WholeEncoder(exchange, request)

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """`{"error": "words"}`."""
        return error_line(error)


class OllamaGenerate(OllamaChat):
    """`ClientDialect` for `POST /api/generate`."""

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return client_request.decode_generate(body, config_limits)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        encoder = StreamEncoder if request.stream else WholeEncoder
        return encoder(exchange, request, generate=True)


class OllamaEmbed(OllamaChat):
    """`ClientDialect` for `POST /api/embed`, and for the `old` `POST /api/embeddings`."""

    def __init__(self, *, old: bool = False) -> None:
        self.old = old

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        return client_request.decode_embed(body, config_limits, old=self.old)

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder:
        return EmbedEncoder(exchange, request, old=self.old)


def old_embeddings() -> OllamaEmbed:
    """The dialect of `/api/embeddings`."""
    return OllamaEmbed(old=True)
