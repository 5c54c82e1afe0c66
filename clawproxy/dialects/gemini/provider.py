"""The provider side: the Gemini API, and what speaks like it."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.gemini import provider_faults
from clawproxy.dialects.gemini.names import NAME
from clawproxy.dialects.gemini.provider_decoder import CountDecoder, EmbeddingDecoder, StreamDecoder, WholeDecoder
from clawproxy.dialects.gemini.provider_request import encode_request
from clawproxy.errors import ProviderFault
from clawproxy.messages import ChatRequest, Route


class GeminiProvider:
    """`ProviderDialect` for `POST {base_url}/models/NAME:METHOD`; the base URL holds the version, as in
    `https://generativelanguage.googleapis.com/v1beta`."""

    name = NAME
    auth_header = "x-goog-api-key"

    def configured(self, provider: ProviderConfig) -> GeminiProvider:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        return encode_request(request, route)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        if request.operation == "count_tokens":
            return CountDecoder(request)
        if request.operation == "embeddings":
            return EmbeddingDecoder(request)
        return StreamDecoder(request) if request.stream else WholeDecoder(request)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)
