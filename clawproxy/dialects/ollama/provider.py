"""The provider side: Ollama itself, and what speaks like it. `base_url` is the server's address: `http://127.0.0.1:11434`."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import MODELS_PAGE, OutboundRequest, ProviderDecoder
from clawproxy.dialects.ollama.provider_answer import StreamDecoder, read_embeddings, read_whole
from clawproxy.dialects.ollama.provider_request import NAME, encode_chat, encode_embed
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.dialects.whole import WholeDecoder
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.messages import ChatRequest, Route

_STREAM = (("content-type", "application/json"), ("accept", "application/x-ndjson"))
_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))


class OllamaProvider:
    """`ProviderDialect` for `POST {base_url}/api/chat` and `POST {base_url}/api/embed`."""

    name = NAME
    auth_header = "authorization"
    models_page = evolve(MODELS_PAGE, path="/api/tags")

    def configured(self, provider: ProviderConfig) -> OllamaProvider:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        if request.operation == "embeddings":
            body, notices = encode_embed(request, route)
            return OutboundRequest("/api/embed", body, _WHOLE, notices=notices)
        if request.operation != "chat":
            raise ClawError("unsupported_parameter", "Ollama does not count tokens beforehand.")
        body, notices = encode_chat(request, route)
        headers = _STREAM if request.stream else _WHOLE
        return OutboundRequest("/api/chat", body, headers, stream=request.stream, notices=notices)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        if request.operation == "embeddings":
            return WholeDecoder(read_embeddings, NAME)
        if request.stream:
            return StreamDecoder(request)
        return WholeDecoder(read_whole(request), NAME)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        """`{"error": "words"}`."""
        return provider_faults.decode_error(status, headers, body)
