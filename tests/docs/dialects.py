"""docs/dialects.md, made from what the encoders do with each parameter and from what the matrix test holds to be true."""

from __future__ import annotations

from typing import Any

from clawproxy.dialects import PATHS, PROVIDER
from clawproxy.dialects.translate import HARMLESS
from clawproxy.errors import ClawError
from clawproxy.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Route,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.matrix.cells import SCENARIOS
from tests.matrix.expected import CLIENTS, PROVIDERS, expected

ROUTE = Route("provider", "model-1")
SCHEMA = {"name": "a", "schema": {"type": "object", "properties": {}}}
PNG, PDF, WAV = "iVBORw0KGgo=", "JVBERi0xLjQ=", "UklGRg=="


def content(*parts: Part) -> dict[str, Any]:
    return {"messages": (Message("user", (TextPart("x"), *parts)),)}


ASKED: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 10},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1.5": {"temperature": 1.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "stop": {"stop": ("END",)},
    "seed": {"seed": 1},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "tools": {"tools": (Tool("f", "does", {"type": "object", "properties": {}}),)},
    "tool_choice: required": {"tools": (Tool("f"),), "tool_choice": ToolChoice("required")},
    "tool_choice: one tool": {"tools": (Tool("f"),), "tool_choice": ToolChoice("tool", "f")},
    "parallel_tool_calls: false": {"tools": (Tool("f"),), "parallel_tool_calls": False},
    "a tool's result that is an error": {
        "messages": (
            Message("user", "x"),
            Message("assistant", None, (ToolCall("c", "f", "{}"),)),
            Message("tool", "no", tool_call_id="c", is_error=True),
        ),
        "tools": (Tool("f"),),
    },
    "response_format: json_object": {"response_format": ResponseFormat("json_object")},
    "response_format: json_schema": {"response_format": ResponseFormat("json_schema", SCHEMA)},
    "reasoning_effort": {"reasoning_effort": "high"},
    "reasoning_budget": {"reasoning_budget": 2048},
    "signed reasoning of another format": {
        "messages": (Message("assistant", "y", thinking=(Thinking("t", "sig", dialect="other"),)), Message("user", "x"))
    },
    "image, inline": content(ImagePart(data=PNG, media_type="image/png")),
    "image by URL": content(ImagePart(url="https://images.example/a.png")),
    "audio, inline": content(AudioPart(WAV, "wav")),
    "PDF, inline": content(FilePart(data=PDF, media_type="application/pdf", filename="a.pdf")),
    "PDF by URL": content(FilePart(url="https://files.example/a.pdf", media_type="application/pdf")),
    "OpenAI's n: 2": {"extra": {"n": 2}, "dialect": "openai_chat"},
    "OpenAI's logprobs": {"extra": {"logprobs": True}, "dialect": "openai_chat"},
    "OpenAI's service_tier": {"extra": {"service_tier": "flex"}, "dialect": "openai_chat"},
    "embeddings": {"operation": "embeddings"},
    "counting tokens": {"operation": "count_tokens"},
}


def verdict(provider: str, fields: dict[str, Any]) -> str:
    """What this provider's encoder does with a request of another dialect."""
    base: dict[str, Any] = {"model": "m", "messages": (Message("user", "x"),), "dialect": "claw"}
    try:
        outbound = PROVIDER[provider].encode_request(ChatRequest(**(base | fields)), ROUTE)
    except ClawError:
        return "400"
    return "notice" if outbound.notices else "yes"


def page() -> str:
    lines = [
        "# Formats: any client in, any provider out",
        "",
        "Written by `make docs`: the first table from the test that runs every client before every provider over real sockets",
        "(`tests/matrix`), the second from what the encoders do.",
        "",
        "A request is decoded into one vocabulary and written anew for its provider; an answer comes back as events and is written",
        "in the client's format. Where client and provider speak the same format, unknown fields and betas pass through, and the",
        "answer's bytes are the provider's own unless a policy changed them. Where they do not: what would change the answer is",
        "refused with 400 and the parameter's name, what is harmless is left out and the client told by a notice",
        "(`x-claw-notice`, `llm_notice`). Nothing is guessed.",
        "",
        "## Where clients speak what",
        "",
        "| format | paths |",
        "|---|---|",
        "| Claw WebSocket | `/websocket` |",
        "| `openai_responses`, WebSocket mode | `/v1/responses`, `/openai/v1/responses` (upgrade) |",
    ]
    by_name: dict[str, list[str]] = {}
    for path, name in PATHS.items():
        by_name.setdefault(name, []).append(path)
    by_name["gemini"] = [f"{root}/models/NAME:METHOD" for root in ("/v1beta", "/v1", "/v1/native/google/v1beta")]
    lines += [f"| `{name}` | {', '.join(f'`{path}`' for path in paths)} |" for name, paths in by_name.items()]
    lines += [
        "",
        "## What works between them",
        "",
        f"Clients: {', '.join(f'`{name}`' for name in CLIENTS)}, each before the provider of the column; streaming and not.",
        "",
        f"| | {' | '.join(f'`{name}`' for name in PROVIDERS)} |",
        f"|---|{'---|' * len(PROVIDERS)}",
    ]
    for scenario in SCENARIOS:
        cells = []
        for provider in PROVIDERS:
            found = {expected(scenario, client, provider) for client in CLIENTS} - {"-"}
            assert len(found) == 1, (scenario, provider)
            cells.append(found.pop())
        lines.append(f"| {scenario} | {' | '.join(cells)} |")
    lines += [
        "",
        "The Responses format has no word for `stop`, so its clients can not ask for it.",
        "",
        "## What becomes of each parameter",
        "",
        "Asked by a client of another format. `yes`: it arrives; `notice`: it is left out or approximated, and the client told;",
        "`400`: refused by name. OpenAI-compatible hosts differ by their profile ([providers](providers.md)): shown is OpenAI's own.",
        "",
        f"| | {' | '.join(f'`{name}`' for name in PROVIDERS)} |",
        f"|---|{'---|' * len(PROVIDERS)}",
    ]
    for asked, fields in ASKED.items():
        verdicts = []
        for provider in PROVIDERS:
            same = fields.get("dialect") == provider
            verdicts.append("yes" if same else verdict(provider, fields))
        lines.append(f"| {asked} | {' | '.join(verdicts)} |")
    lines += [
        "",
        "## Harmless to lose",
        "",
        "By the client's format; left out for a provider of another, with a notice. `cache_control` everywhere.",
        "",
        "| format | fields |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {', '.join(f'`{field}`' for field in sorted(fields))} |" for name, fields in HARMLESS.items() if fields
    ]
    return "\n".join([*lines, ""])
