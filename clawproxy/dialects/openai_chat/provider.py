"""The provider side: OpenAI, and the many that speak like it (vLLM, Ollama, OpenRouter, Azure, DeepSeek, Groq...)."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.dialects.openai_chat.client_answer import NAME
from clawproxy.dialects.openai_chat.provider_answer import StreamDecoder, WholeDecoder
from clawproxy.dialects.openai_chat.provider_request import encode_body
from clawproxy.errors import ProviderFault
from clawproxy.messages import ChatRequest, Route


class OpenAIChatProvider:
    """`ProviderDialect` for `POST {base_url}/chat/completions`."""

    name = NAME
    auth_header = "authorization"

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        accept = "text/event-stream" if request.stream else "application/json"
        return OutboundRequest(
            "/chat/completions",
            encode_body(request, route),
            (("content-type", "application/json"), ("accept", accept)),
            stream=request.stream,
        )

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        return StreamDecoder(request) if request.stream else WholeDecoder(request)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)
