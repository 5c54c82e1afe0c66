"""Values for tests, with every field defaulted: say only what the test is about."""

from __future__ import annotations

from typing import Any

from clawproxy.clocks import Deadlines
from clawproxy.context import Attempt, Exchange, new_id
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest, Credentials, Message, Principal, Route


def make_request(prompt: str = "Say hello.", **changes: Any) -> ChatRequest:
    """A chat request with one user message, or with `messages=`."""
    values: dict[str, Any] = {"model": "test-model", "messages": (Message("user", prompt),), "dialect": "openai_chat"}
    return ChatRequest(**(values | changes))


def make_principal(**changes: Any) -> Principal:
    values: dict[str, Any] = {"key": "test-key"}
    return Principal(**(values | changes))


def make_exchange(**changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "request_id": new_id(),
        "surface": "openai_chat",
        "principal": make_principal(),
        "deadlines": Deadlines(),
        "requested_model": "test-model",
        "instance": "test",
    }
    return Exchange(**(values | changes))


def make_route(**changes: Any) -> Route:
    values: dict[str, Any] = {"provider": "test", "model": "test-model"}
    return Route(**(values | changes))


def make_attempt(**changes: Any) -> Attempt:
    values: dict[str, Any] = {"id": new_id(), "number": 1, "reason": "first", "route": make_route()}
    return Attempt(**(values | changes))


def make_credentials(token: str | None = "sk-test", **changes: Any) -> Credentials:  # noqa: S107
    values: dict[str, Any] = {"token": token, "peer": "127.0.0.1", "surface": "openai_chat"}
    return Credentials(**(values | changes))


def make_head(target: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Head:
    """`make_head("/v1/messages?beta=true", anthropic_version="2023-06-01")`: `_` stands for `-` in a header's name."""
    path, _, query = target.partition("?")
    return Head(method, target, path, query, tuple([(name.replace("_", "-"), value) for name, value in headers.items()]))
