"""The provider side: Cohere, and what speaks like it. `base_url` holds the version: `https://api.cohere.com/v2`."""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.cohere.client_messages import NAME
from clawproxy.dialects.cohere.provider_answer import StreamDecoder, read_embeddings, read_whole
from clawproxy.dialects.cohere.provider_faults import decode_error
from clawproxy.dialects.cohere.provider_request import encode_chat, encode_embed
from clawproxy.dialects.whole import WholeDecoder
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.messages import ChatRequest, Route

_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream"))
_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))


class CohereProvider:
    """`ProviderDialect` for `POST {base_url}/chat` and `POST {base_url}/embed`."""

    name = NAME
    auth_header = "authorization"

    def configured(self, provider: ProviderConfig) -> CohereProvider:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        if request.operation == "embeddings":
            body, notices = encode_embed(request, route)
            return OutboundRequest("/embed", body, _WHOLE, notices=notices)
        if request.operation != "chat":
            raise ClawError("unsupported_parameter", "Cohere does not count the tokens of a chat beforehand.")
        body, notices = encode_chat(request, route)
        headers = _STREAM if request.stream else _WHOLE
        return OutboundRequest("/chat", body, headers, stream=request.stream, notices=notices)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        if request.operation == "embeddings":
            return WholeDecoder(read_embeddings, NAME)
        return StreamDecoder() if request.stream else WholeDecoder(read_whole, NAME)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        """`{"message": "words"}`."""
        return decode_error(status, headers, body)
