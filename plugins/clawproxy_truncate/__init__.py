"""Fits the prompt to the model's context window, and the answer to its cap.

Rule 1: whole turns are dropped, those that the strategy names first. System and developer messages stay, so do the last turn and
        what the client pinned, and a tool call is never parted from its results.
Rule 2: tokens are estimated (`estimate`), and every message says so. A bound that can be proved is not what this is.
Rule 3: the window is that of the largest candidate route; a route without one has room for everything.
Rule 4: a long conversation is looked at in pieces, between which others run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio
from attrs import evolve, field, frozen

from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest, Message
from clawproxy_truncate import summary
from clawproxy_truncate.estimate import message_tokens, tool_tokens
from clawproxy_truncate.settings import Fitting, TruncateModel, TruncateSettings, fitting, problems
from clawproxy_truncate.strategies import Turns, chosen, chosen_in_steps, order
from clawproxy_truncate.turns import split_turns

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange, Registry

__all__ = ["TruncateModel", "TruncateSettings"]

PIECE = 1 << 16
"""Tokens that are counted before others run."""
MOST_MODELS = 4096


@frozen(slots=True)
class Truncate:
    """One generation of the plugin."""

    settings: TruncateSettings
    app: App
    models: dict[str, Fitting] = field(factory=dict)

    def fitting(self, model: str) -> Fitting:
        known = self.models.get(model)
        if known is None:
            if len(self.models) >= MOST_MODELS:  # clients may name models without end
                self.models.clear()
            known = self.models[model] = fitting(self.settings, model)
        return known


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("truncate", TruncateSettings)


@hookimpl
def configure(config: TruncateSettings, app: App) -> Truncate:
    """Raises ConfigError."""
    found = problems(config, app.config)
    if found:
        raise ConfigError(found)
    return Truncate(config, app)


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Truncate) -> ChatRequest | None:
    """Raises ClawError("context_length_exceeded")."""
    if request.operation != "chat":
        return None  # inputs to embed are no conversation, each has a window of its own; and what is counted is counted whole
    if state.settings.max_output_tokens is None:
        for route in exchange.candidates:
            if route.context_tokens is not None or route.max_output_tokens is not None:
                break
        else:
            return None  # nobody stated any limit
    capped = _cap_output(exchange, request, state.settings)
    window = _window(exchange)
    fitted = capped if window is None else await _fit_prompt(exchange, capped, state, window)
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


def _window(exchange: Exchange) -> int | None:
    windows = [route.context_tokens for route in exchange.candidates]
    limits = [tokens for tokens in windows if tokens is not None]
    return max(limits) if limits and len(limits) == len(windows) else None


async def _costs(messages: Sequence[Message]) -> list[int]:
    """Estimated tokens of each."""
    costs, since = [], 0
    for message in messages:
        tokens = message_tokens(message)
        costs.append(tokens)
        since += tokens
        if since >= PIECE:
            since = 0
            await trio.lowlevel.checkpoint()
    return costs


async def _fit_prompt(exchange: Exchange, request: ChatRequest, state: Truncate, window: int) -> ChatRequest:
    room = window - (request.max_tokens or 0)
    messages = request.messages
    costs = await _costs(messages)
    total = tool_tokens(request.tools) + sum(costs)
    if total <= room:
        return request
    how = state.fitting(exchange.requested_model)
    if how.policy(exchange.surface) == "refuse":
        raise _too_long(total, window, request.max_tokens)
    split = split_turns(messages)
    pinned = frozenset(at for at, turn in enumerate(split) if any(messages[place].pinned for place in turn))
    turns = Turns([sum(costs[place] for place in turn) for turn in split], pinned, how.keep_last)
    going = order(how.strategy, turns)
    gone: list[int] | None = None
    written: Message | None = None
    if how.strategy == "summarize":
        gone, written = await _summarized(exchange, request, state, how, split, turns, total - room, room)
    if gone is None:
        gone = chosen(going, turns.costs, total - room)
    if gone is None:
        left = total - sum(turns.costs[turn] for turn in going)
        raise _too_long(left, window, request.max_tokens)
    dropped = {place for turn in gone for place in split[turn]}
    kept = [message for place, message in enumerate(messages) if place not in dropped]
    if written is not None:
        first = min(dropped)
        kept.insert(first - sum(place < first for place in dropped), written)
    figures = {"dropped_messages": len(dropped), "dropped_turns": len(gone), "kept_messages": len(messages) - len(dropped)}
    now = total - sum(costs[place] for place in dropped) + (0 if written is None else message_tokens(written))
    word = "dropped" if written is None else "replaced by a summary"
    exchange.notice(
        "prompt_truncated",
        f"The prompt did not fit the model's context window: {len(dropped)} older messages were {word}.",
        **figures,
        estimated_tokens=total,
        context_tokens=window,
        kept_tokens=now,
        strategy=how.strategy,
        summarized=written is not None,
    )
    return evolve(request, messages=tuple(kept))


async def _summarized(
    exchange: Exchange,
    request: ChatRequest,
    state: Truncate,
    how: Fitting,
    split: Sequence[Sequence[int]],
    turns: Turns,
    excess: int,
    room: int,
) -> tuple[list[int] | None, Message | None]:
    """The turns that a summary stands for, and the summary. Neither, where there is none: then turns are only dropped."""
    settings, tokens = state.settings, state.settings.summary_tokens
    gone = chosen_in_steps(order("summarize", turns), turns.costs, excess + summary.budget(tokens), room)
    if not gone or how.summary_model is None or exchange.parent is not None:
        return None, None
    dropped = [request.messages[place] for turn in gone for place in split[turn]]
    text = await summary.summarize(state.app, exchange, request, dropped, how.summary_model, tokens, settings.summary_timeout)
    return (None, None) if text is None else (gone, summary.as_message(text, tokens))


def _too_long(estimated: int, window: int, max_tokens: int | None) -> ClawError:
    asked = f" and {max_tokens} more were asked for the answer" if max_tokens else ""
    return ClawError(
        "context_length_exceeded",
        f"The model's context window is {window} tokens; the prompt is about {estimated} (an estimate){asked}.",
        param="messages",
        extra={"context_tokens": window, "estimated_tokens": estimated},
    )
