"""The provider side: OpenAI, and those that offer Responses as it does."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.dialects.openai_responses.provider_answer import StreamDecoder, WholeDecoder
from clawproxy.dialects.openai_responses.provider_request import encode_body
from clawproxy.dialects.openai_responses.tools import NAME
from clawproxy.errors import ProviderFault
from clawproxy.messages import ChatRequest, Route

_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream"))
_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))


class OpenAIResponsesProvider:
    """`ProviderDialect` for `POST {base_url}/responses`."""

    name = NAME
    auth_header = "authorization"

    def configured(self, provider: ProviderConfig) -> OpenAIResponsesProvider:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        body, notices = encode_body(request, route)
        return OutboundRequest("/responses", body, _STREAM if request.stream else _WHOLE, "POST", request.stream, notices)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        return StreamDecoder(request) if request.stream else WholeDecoder(request)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)
