"""Which profile a provider gets, what the configuration says about it, and what other dialects' requests become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clawproxy.config import Config, ProviderConfig
from clawproxy.config.checks_dialect import PROFILES as NAMES
from clawproxy.config.load import load
from clawproxy.dialects import PROVIDER
from clawproxy.dialects.openai_chat.provider import OpenAIChatProvider
from clawproxy.dialects.profiles import PROFILES, profile_for
from clawproxy.errors import ClawError, ConfigError
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, Message, ResponseFormat, TextPart, Thinking, ToolCall
from clawproxy.testing.factories import make_request, make_route
from clawproxy.upstream.providers import Providers

ROUTE = make_route(model="m")


def test_the_configuration_knows_the_same_names() -> None:
    assert tuple(PROFILES) == NAMES
    assert all(profile.name == name for name, profile in PROFILES.items())


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://API.OpenAI.com:443/v1", "openai"),
        ("https://api.openai.com.evil.example/v1", "default"),
        ("https://corp.openai.azure.com", "azure"),
        ("https://corp.cognitiveservices.azure.com/openai/v1", "azure"),
        ("https://api.xroute.ai/openai/v1", "xroute"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://bedrock-mantle.us-east-1.api.aws/v1", "bedrock"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1", "bedrock"),
        ("http://127.0.0.1:11434/v1", "ollama_compat"),
        ("http://[::1]:11434/v1", "ollama_compat"),
        ("http://127.0.0.1:18789/v1", "openclaw"),
        ("http://127.0.0.1:8000/v1", "default"),
        ("http://[::1]/v1", "default"),
        ("http://[::1", "default"),
        ("http://host:port/v1", "default"),
    ],
)
def test_a_host_has_its_profile(url: str, name: str) -> None:
    assert profile_for(ProviderConfig(base_url=url)).name == name


def test_the_configuration_wins_over_the_host() -> None:
    assert profile_for(ProviderConfig(base_url="https://api.openai.com/v1", profile="vllm")).name == "vllm"
    assert profile_for(ProviderConfig(base_url="https://apim.example/x", dialect="azure"), PROFILES["azure"]).name == "azure"
    assert profile_for(ProviderConfig()).name == "default"


def test_a_provider_that_needs_nothing_stays_the_same_object() -> None:
    assert PROVIDER["openai_chat"].configured(ProviderConfig(base_url="http://127.0.0.1:1/v1")) is PROVIDER["openai_chat"]


def test_an_unknown_profile_starts_nothing() -> None:
    with pytest.raises(ConfigError, match="not known"):
        profile_for(ProviderConfig(profile="open_ai"))
    config = Config(providers={"p": ProviderConfig(base_url="http://127.0.0.1:1/v1", profile="open_ai")})
    with pytest.raises(ConfigError, match=r"^providers\.p\.profile: it is not known"):
        Providers(config, PROVIDER, lambda ref: (_ for _ in ()).throw(LookupError))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('profile = "open_router"', "profile: \"open_router\" is no known profile; did you mean `openrouter`?"),
        ('dialect = "scripted"\nprofile = "openai"', 'profile: has no meaning for dialect = "scripted"; remove it'),
        (
            'dialect = "azure"\nprofile = "groq"',
            "profile: \"groq\" is not Azure's; write one of azure, azure_entra, or leave it out",
        ),
        ('api_version = "2024-10-21"', 'api_version: has no meaning for dialect = "openai_chat"; remove it'),
        ('dialect = "azure"\napi_version = "a b"', 'api_version: "a b" is no version; write it like "2024-10-21"'),
        (
            'dialect = "azure"\nbase_url = "https://c.openai.azure.com/openai/deployments/gpt"',
            "base_url: names a deployment; end it with the host: a route's `model` is the deployment's name",
        ),
        (
            'dialect = "azure"\napi_version = "2024-10-21"\nbase_url = "https://c.openai.azure.com/openai/v1/"',
            "base_url: ends with /v1, which has no api_version; end it with the host, or leave api_version out",
        ),
    ],
)  # fmt: skip
def test_the_check_says_what_would_be_right(lines: str, problem: str, tmp_path: Path) -> None:
    if "base_url" not in lines and "scripted" not in lines:
        lines += '\nbase_url = "https://llm.example"'
    (tmp_path / "claw.toml").write_text(f"[providers.p]\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path / "claw.toml",
            settings={},
            known_plugins=["auth", "audit", "sanitize", "truncate", "router", "meter"],
            environ={},
        )
    assert [each.partition("providers.p.")[2] for each in caught.value.problems] == [problem]


def test_plugins_dialects_read_both_keys_as_they_like(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(
        '[providers.p]\ndialect = "mine"\nbase_url = "https://x.example"\nprofile = "any"\napi_version = "7"\n'
    )
    plugins = ["auth", "audit", "sanitize", "truncate", "router", "meter"]
    loaded = load(tmp_path / "claw.toml", settings={}, known_dialects=["mine"], known_plugins=plugins, environ={})
    assert loaded.config.providers["p"].profile == "any"


@pytest.mark.parametrize(
    ("base", "version", "chat", "vectors"),
    [
        ("https://c.openai.azure.com", None, "/openai/v1/chat/completions", "/openai/v1/embeddings"),
        ("https://c.openai.azure.com/", None, "/openai/v1/chat/completions", "/openai/v1/embeddings"),
        ("https://c.openai.azure.com/openai", None, "/v1/chat/completions", "/v1/embeddings"),
        ("https://c.openai.azure.com/openai/v1/", None, "/chat/completions", "/embeddings"),
        (
            "https://c.openai.azure.com",
            "2024-10-21",
            "/openai/deployments/m%20x%2F1/chat/completions?api-version=2024-10-21",
            "/openai/deployments/m%20x%2F1/embeddings?api-version=2024-10-21",
        ),
        (
            "https://gate.example/corp/openai",
            "2025-01-01-preview",
            "/deployments/m%20x%2F1/chat/completions?api-version=2025-01-01-preview",
            "/deployments/m%20x%2F1/embeddings?api-version=2025-01-01-preview",
        ),
    ],
)
def test_azures_paths(base: str, version: str | None, chat: str, vectors: str) -> None:
    azure = PROVIDER["azure"].configured(ProviderConfig(dialect="azure", base_url=base, api_version=version))
    assert azure.auth_header == "api-key"
    route = make_route(model="m x/1")
    assert azure.encode_request(make_request(), route).path == chat
    assert azure.encode_request(make_request(operation="embeddings"), route).path == vectors


# --- requests of other dialects ----------------------------------------------------------------------------------------------


def encoded(request: ChatRequest, profile: str = "openai") -> tuple[dict[str, Any], tuple[Notice, ...]]:
    outbound = OpenAIChatProvider(PROFILES[profile]).encode_request(request, ROUTE)
    return json.loads(outbound.body), tuple(outbound.notices)


def foreign(*messages: Message, **fields: Any) -> ChatRequest:
    return make_request(messages=messages or (Message("user", "hi"),), dialect="anthropic", **fields)


def test_signed_reasoning_stays_with_its_own_dialect() -> None:
    thoughts = (Thinking("secret", signature="sig", dialect="anthropic"), Thinking(data="sealed", dialect="anthropic"))
    call = ToolCall("c1", "f", "{}", signature="theirs")
    body, notices = encoded(
        foreign(
            Message("assistant", None, thinking=thoughts),
            Message("assistant", None, (call,), thinking=thoughts),
            Message("tool", "it broke", tool_call_id="c1", is_error=True),
        )
    )
    assert notices == ()
    assert body["messages"] == [
        {"role": "assistant", "content": ""},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "it broke", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("profile", "name"),
    [("openai", None), ("deepseek", "reasoning_content"), ("vllm", "reasoning"), ("default", "reasoning_content")],
)
def test_plain_reasoning_takes_the_hosts_name(profile: str, name: str | None) -> None:
    body, _ = encoded(foreign(Message("assistant", "42", reasoning="so")), profile)
    assert body["messages"] == [{"role": "assistant", "content": "42", **({name: "so"} if name else {})}]


@pytest.mark.parametrize(
    ("budget", "effort"), [(1, "low"), (2_048, "low"), (2_049, "medium"), (8_192, "medium"), (8_193, "high"), (10**6, "high")]
)
def test_a_budget_becomes_the_nearest_effort(budget: int, effort: str) -> None:
    body, notices = encoded(foreign(reasoning_budget=budget))
    assert body["reasoning_effort"] == effort
    [notice] = notices
    assert (notice.code, notice.details) == ("parameter_approximated", {"param": "reasoning_budget", "reasoning_effort": effort})


def test_a_budget_of_nothing_is_left_out_with_a_word() -> None:
    body, notices = encoded(foreign(reasoning_budget=0))
    assert "reasoning_effort" not in body
    assert [(notice.code, notice.details) for notice in notices] == [("parameter_dropped", {"param": "reasoning_budget"})]


def test_an_effort_says_it_better_than_a_budget() -> None:
    body, notices = encoded(foreign(reasoning_budget=5000, reasoning_effort="low"))
    assert (body["reasoning_effort"], notices) == ("low", ())


def test_a_schema_has_a_name_here() -> None:
    said = ResponseFormat("json_schema", {"schema": {"type": "object"}, "strict": True})
    body, _ = encoded(foreign(response_format=said))
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }


def test_what_another_dialect_brought_along() -> None:
    part = TextPart("hi", {"cache_control": {"type": "ephemeral"}})
    _, notices = encoded(foreign(Message("user", (part,))))
    assert [notice.details["param"] for notice in notices] == ["cache_control"]
    for request, param in (
        (foreign(extra={"inference_geo": "eu"}), "inference_geo"),
        (foreign(Message("user", "x", extra={"later": 1})), "messages[0].later"),
        (foreign(Message("user", (TextPart("x", {"citations": {}}),))), "messages[0].content[0].citations"),
    ):
        with pytest.raises(ClawError) as caught:
            encoded(request)
        assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


def test_nothing_of_the_request_is_changed_on_the_way() -> None:
    tools = make_request(messages=(Message("developer", "x", extra={"reasoning": "r"}),), extra={"user": "u", "seed": 1})
    before = repr(tools)
    for name in PROFILES:
        encoded(tools, name)
    assert repr(tools) == before
