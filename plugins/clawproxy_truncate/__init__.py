"""Fits the prompt to the model's context window, and the answer to its cap.

Rule 1: whole turns are dropped, oldest first. System and developer messages stay, the last turn stays, and a tool call is
        never parted from its results.
Rule 2: tokens are estimated (`estimate`), and every message says so. A bound that can be proved is not what this is.
Rule 3: the window is that of the largest candidate route; a route without one has room for everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from clawproxy.errors import ClawError
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest
from clawproxy_truncate.estimate import message_tokens, tool_tokens
from clawproxy_truncate.settings import TruncateSettings
from clawproxy_truncate.turns import split_turns

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange, Registry

__all__ = ["TruncateSettings"]


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("truncate", TruncateSettings)


@hookimpl
def configure(config: TruncateSettings, app: App) -> TruncateSettings:
    return config


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: TruncateSettings) -> ChatRequest | None:
    """Raises ClawError("context_length_exceeded")."""
    if request.operation != "chat":
        return None  # inputs to embed are no conversation, each has a window of its own; and what is counted is counted whole
    if state.max_output_tokens is None:
        for route in exchange.candidates:
            if route.context_tokens is not None or route.max_output_tokens is not None:
                break
        else:
            return None  # nobody stated any limit
    capped = _cap_output(exchange, request, state)
    fitted = _fit_prompt(exchange, capped, state)
    return None if fitted is request else fitted


def _cap_output(exchange: Exchange, request: ChatRequest, settings: TruncateSettings) -> ChatRequest:
    """`max_tokens` no higher than the operator's cap, which also holds where the client said nothing, and no higher than any
    candidate allows."""
    caps = [] if settings.max_output_tokens is None else [settings.max_output_tokens]
    stated = [route.max_output_tokens for route in exchange.candidates]
    known = [tokens for tokens in stated if tokens is not None]
    if known and len(known) == len(stated):
        caps.append(max(known))
    if not caps:
        return request
    cap = min(caps)
    asked = request.max_tokens
    if asked is None:
        return request if settings.max_output_tokens is None else evolve(request, max_tokens=cap)
    if asked <= cap:
        return request
    exchange.notice("max_tokens_clamped", f"max_tokens was lowered to {cap}.", asked=asked, max_tokens=cap)
    return evolve(request, max_tokens=cap)


def _fit_prompt(exchange: Exchange, request: ChatRequest, settings: TruncateSettings) -> ChatRequest:
    windows = [route.context_tokens for route in exchange.candidates]
    limits = [tokens for tokens in windows if tokens is not None]
    if not limits or len(limits) < len(windows):
        return request
    window = max(limits)
    room = window - (request.max_tokens or 0)
    costs = [message_tokens(message) for message in request.messages]
    fixed = tool_tokens(request.tools)
    total = fixed + sum(costs)
    if total <= room:
        return request
    if settings.policy(exchange.surface) == "refuse":
        raise _too_long(total, window, request.max_tokens)
    turns = split_turns(request.messages)
    excess = total - room
    dropped: set[int] = set()
    gone = 0
    for turn in turns[:-1]:
        if excess <= 0:
            break
        excess -= sum(costs[place] for place in turn)
        dropped.update(turn)
        gone += 1
    if excess > 0:
        raise _too_long(total - sum(costs[place] for place in dropped), window, request.max_tokens)
    exchange.notice(
        "prompt_truncated",
        f"The prompt did not fit the model's context window: {len(dropped)} older messages were dropped.",
        dropped_messages=len(dropped),
        dropped_turns=gone,
        kept_messages=len(request.messages) - len(dropped),
        estimated_tokens=total,
        context_tokens=window,
    )
    return evolve(request, messages=tuple(message for place, message in enumerate(request.messages) if place not in dropped))


def _too_long(estimated: int, window: int, max_tokens: int | None) -> ClawError:
    asked = f" and {max_tokens} more were asked for the answer" if max_tokens else ""
    return ClawError(
        "context_length_exceeded",
        f"The model's context window is {window} tokens; the prompt is about {estimated} (an estimate){asked}.",
        param="messages",
        extra={"context_tokens": window, "estimated_tokens": estimated},
    )
