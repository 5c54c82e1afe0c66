"""The provider side: OpenAI, and the many that speak like it (vLLM, Ollama, OpenRouter, Azure, DeepSeek, Groq...)."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.dialects.openai_chat.client_answer import NAME
from clawproxy.dialects.openai_chat.provider_answer import StreamDecoder, WholeDecoder
from clawproxy.dialects.openai_chat.provider_request import encode_body
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.messages import ChatRequest, Route

_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream"))
_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))


class OpenAIChatProvider:
    """`ProviderDialect` for `POST {base_url}/chat/completions`."""

    name = NAME
    auth_header = "authorization"

    def configured(self, provider: ProviderConfig) -> OpenAIChatProvider:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        if request.operation == "count_tokens":
            raise ClawError("unsupported_parameter", "This provider's format has no way to count tokens.")
        headers = _STREAM if request.stream else _WHOLE
        return OutboundRequest("/chat/completions", encode_body(request, route), headers, "POST", request.stream)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        return StreamDecoder(request) if request.stream else WholeDecoder(request)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)
