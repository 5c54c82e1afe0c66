"""The provider side: OpenAI, and the many that speak like it (vLLM, OpenRouter, Azure, Groq...), each by its profile."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from attrs import evolve

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import MODELS_PAGE, OutboundRequest, ProviderDecoder
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.dialects.openai_chat.client_answer import NAME
from clawproxy.dialects.openai_chat.provider_answer import StreamDecoder, WholeDecoder
from clawproxy.dialects.openai_chat.provider_embeddings import EmbeddingsDecoder, encode_embeddings
from clawproxy.dialects.openai_chat.provider_request import encode_body
from clawproxy.dialects.profiles import DEFAULT, PROFILES, Profile, profile_for
from clawproxy.dialects.translate import refuse_operation
from clawproxy.errors import ProviderFault
from clawproxy.messages import ChatRequest, Route

_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream"))
_WHOLE = (("content-type", "application/json"), ("accept", "application/json"))


class OpenAIChatProvider:
    """`ProviderDialect` for `POST {base_url}/chat/completions` and `/embeddings`.

    Args:
        profile: what its host does differently, where the configuration does not say.
        deployments: what comes before the deployment's name in a path, None where the model stands in the body alone.
        before: the path up to the endpoint's own.
        query: what follows a path.
    """

    name = NAME

    def __init__(self, profile: Profile = DEFAULT, *, deployments: str | None = None, before: str = "", query: str = "") -> None:
        self.profile = profile
        self.auth_header = profile.auth_header
        self._deployments = deployments
        self._query = query
        self._chat = f"{before}/chat/completions{query}"
        root = before if deployments is None else deployments.removesuffix("/deployments/")
        self.models_page = evolve(MODELS_PAGE, path=f"{root}/models{query}")
        self._vectors = f"{before}/embeddings{query}"

    def configured(self, provider: ProviderConfig) -> OpenAIChatProvider:
        """Raises ConfigError where the profile is not known."""
        profile = profile_for(provider, self.profile)
        if profile.paths == "openai":
            return self if profile is self.profile else OpenAIChatProvider(profile)
        given = urlsplit(provider.base_url or "").path.rstrip("/")
        root = "" if given.endswith("/openai") else "/openai"
        if provider.api_version is not None:
            query = f"?api-version={quote(provider.api_version, safe='')}"
            return OpenAIChatProvider(profile, deployments=f"{root}/deployments/", query=query)
        return OpenAIChatProvider(profile, before="" if given.endswith("/openai/v1") else f"{root}/v1")

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        if request.operation != "chat":
            if request.operation != "embeddings" or not self.profile.embeddings:
                refuse_operation(request, route, self.name)
            body, notices = encode_embeddings(request, route, self.profile)
            path = self._vectors if self._deployments is None else self._deployed(route, "embeddings")
            return OutboundRequest(path, body, _WHOLE, "POST", False, notices)
        body, notices = encode_body(request, route, self.profile)
        path = self._chat if self._deployments is None else self._deployed(route, "chat/completions")
        stream = request.stream
        return OutboundRequest(path, body, _STREAM if stream else _WHOLE, "POST", stream, notices)

    def _deployed(self, route: Route, endpoint: str) -> str:
        """Azure's older form: the deployment's name in the path."""
        return f"{self._deployments}{quote(route.model, safe='')}/{endpoint}{self._query}"

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        if request.operation == "embeddings":
            return EmbeddingsDecoder()
        return StreamDecoder(request) if request.stream else WholeDecoder(request)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)


def azure() -> OpenAIChatProvider:
    """The dialect `azure`."""
    return OpenAIChatProvider(PROFILES["azure"])
