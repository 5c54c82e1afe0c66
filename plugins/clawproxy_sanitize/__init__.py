"""Keeps secrets out of prompts and answers: known token formats, the operator's own patterns, and lists of words.

Rule 1: patterns are RE2's, so that no text can make a match slow; one that RE2 refuses stops the load.
Rule 2: notices, errors and counters say which pattern matched and how often, never what.
Rule 3: it reduces known patterns. It prevents nothing that is encoded, spelled out, or not in its list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.messages import ChatRequest
from clawproxy_sanitize.prompt import changed, texts
from clawproxy_sanitize.scanner import Scanner
from clawproxy_sanitize.settings import SanitizeSettings, rules
from clawproxy_sanitize.stream import Answer

if TYPE_CHECKING:
    from clawproxy.context import Exchange, Registry

__all__ = ["SanitizeSettings"]


@frozen(slots=True)
class Sanitizer:
    """One generation of the plugin; None where a direction is off."""

    input: Scanner | None
    output: Scanner | None


_latest: dict[str, Sanitizer] = {}
"""What was compiled last. It takes 20 ms, with long lists of words half a second, during which no request goes on; and most
reloads change something else."""


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("sanitize", SanitizeSettings)


@hookimpl
def configure(config: SanitizeSettings) -> Sanitizer:
    """Raises ConfigError for a pattern that RE2 refuses or that can not be followed through a stream."""
    key = repr(config)  # not the settings themselves: the order of patterns counts
    known = _latest.get(key)
    if known is not None:
        return known
    into, out = rules(config, config.input), rules(config, config.output)
    prompts = Scanner(into) if into else None
    made = Sanitizer(prompts, prompts if into == out else Scanner(out) if out else None)
    _latest.clear()
    _latest[key] = made
    return made


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Sanitizer) -> ChatRequest | None:
    """Raises Refusal("refused.sanitize") where a pattern that blocks is found."""
    scanner = state.input
    if scanner is None or not scanner.may_hold_any(texts(request)):
        return None
    counts: dict[str, int] = {}
    result = changed(request, lambda text: scanner.redact(text, counts))
    if counts:
        _tell(exchange, "prompt", scanner, counts)
    return None if result == request else result


@hookimpl
def tap_response(exchange: Exchange, state: Sanitizer) -> Transform | None:
    scanner = state.output
    if scanner is None:
        return None
    answer = Answer(scanner, {}, lambda counts: _tell(exchange, "answer", scanner, counts))
    return Transform(answer.change, answer.end, streams="window", raw=answer.passes)


def _tell(exchange: Exchange, where: str, scanner: Scanner, counts: dict[str, int]) -> None:
    """One notice when secrets of a new kind were found; the counts go on in `exchange.state["sanitize"]`."""
    exchange.state.setdefault("sanitize", {})[where] = counts
    flagged = {rule.name for rule in scanner.rules if rule.action == "flag"}
    replaced = {name: count for name, count in counts.items() if name not in flagged}
    only = {name: count for name, count in counts.items() if name in flagged}
    if replaced:
        exchange.notice("redacted", f"Secrets were taken out of the {where}.", where=where, patterns=replaced)
    if only:
        exchange.notice("flagged", f"The {where} holds what looks like secrets.", where=where, patterns=only)
