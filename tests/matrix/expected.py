"""What is not simply `yes`, cell by cell: docs/dialects.md is made from this, and the matrix test holds it to be true."""

from __future__ import annotations

CLIENTS = ("openai_chat", "openai_responses", "anthropic", "gemini", "ollama", "cohere", "claw")
PROVIDERS = ("openai_chat", "openai_responses", "anthropic", "gemini", "ollama", "cohere")
BASE = {
    "openai_chat": "/v1",
    "openai_responses": "/v1",
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "ollama": "",
    "cohere": "/v2",
}
"""What a provider's base_url ends with."""

NOT_ASKABLE: dict[str, tuple[str, ...]] = {"stop": ("openai_responses",)}
"""Scenario -> clients whose own format has no word for it."""

REFUSED: dict[tuple[str, str], str] = {
    ("stop", "openai_responses"): "stop",
}
"""(scenario, provider) -> the parameter that is refused by name, whatever the client."""


def expected(scenario: str, client: str, provider: str) -> str:
    if client in NOT_ASKABLE.get(scenario, ()):
        return "-"
    refused = REFUSED.get((scenario, provider))
    return "yes" if refused is None else f"400 `{refused}`"
