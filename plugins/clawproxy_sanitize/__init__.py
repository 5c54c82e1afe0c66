"""Keeps secrets, and what else the operator names, out of prompts and answers; tells of prompts that try to instruct the model.

Rule 1: patterns are RE2's, so that no text can make a match slow; one that RE2 refuses stops the load.
Rule 2: notices, errors, counters and records say which pattern matched and how often, never what.
Rule 3: it reduces known patterns. It prevents nothing that is encoded, spelled out, or not in its list.
Rule 4: what was looked at is recorded for each exchange (`Exchange.scanned`), whether anything was found or not.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from clawproxy.context import Scanned
from clawproxy.errors import Refusal
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.messages import ChatRequest
from clawproxy_sanitize.injection import Injection
from clawproxy_sanitize.prompt import changed, texts
from clawproxy_sanitize.scanner import INVISIBLE, Doubts, Patterns, Scanner, encode
from clawproxy_sanitize.settings import SanitizeSettings, active, groups, rules
from clawproxy_sanitize.stream import Answer

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange, Registry
    from clawproxy_sanitize.classifier import Classifier
    from clawproxy_sanitize.restore import Vault

__all__ = ["SanitizeSettings"]


@frozen(slots=True)
class Sanitizer:
    """One generation of the plugin; None for what is off."""

    settings: SanitizeSettings
    input: Scanner | None
    output: Scanner | None
    injection: Injection | None
    classifier: Classifier | None
    prompt: tuple[str, ...]
    """The groups of rules that prompts are looked at with."""
    answer: tuple[str, ...]
    restores: bool
    key: bytes = field(repr=False)


_latest: dict[str, Sanitizer] = {}
"""What was compiled last. It takes 50 ms, with long lists of words half a second, during which no request goes on; and most
reloads change something else."""
_RANDOM = os.urandom(32)
"""The key of placeholders where the gateway keeps no pepper."""


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("sanitize", SanitizeSettings)


@hookimpl
def configure(config: SanitizeSettings, app: App) -> Sanitizer:
    """Raises ConfigError for a pattern that RE2 refuses or that can not be followed through a stream."""
    made = compiled(config, app.pepper)
    if config.classifier is None:
        return made
    from clawproxy_sanitize.classifier import Classifier

    return evolve(made, classifier=Classifier(config.classifier, app))


def compiled(config: SanitizeSettings, pepper: bytes = b"") -> Sanitizer:
    """All but the classifier. Raises ConfigError."""
    key = hmac.digest(pepper or _RANDOM, b"clawproxy sanitize placeholders 1", "sha256")
    name = repr(config)  # not the settings themselves: the order of patterns counts
    known = _latest.get(name)
    if known is not None and known.key == key:
        return known
    found = groups(config)
    into, out = rules(found, config, "input"), rules(found, config, "output")
    hidden = [None if action == "off" else action for action in (config.invisible.input, config.invisible.output)]
    patterns = Patterns(into)
    both = patterns if into == out else Patterns(out)
    prompts = Scanner(patterns, hidden[0]) if into or hidden[0] else None
    answers = Scanner(both, hidden[1]) if out or hidden[1] else None
    made = Sanitizer(
        config,
        prompts,
        prompts if both is patterns and hidden[0] == hidden[1] else answers,
        None if config.injection.input == "off" else Injection(config.injection.threshold),
        None,
        active(found, config, "input"),
        active(found, config, "output"),
        any(rule.action == "restore" for rule in into),
        key,
    )
    _latest.clear()
    _latest[name] = made
    return made


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Sanitizer) -> ChatRequest | None:
    """Raises Refusal("refused.sanitize") where a pattern that blocks is found, or the classifier objects."""
    if not state.prompt:
        return None
    said = texts(request)
    data = encode("\n".join(said))
    scanned = exchange.scanned = exchange.scanned or Scanned()
    scanned.prompt, scanned.prompt_bytes = state.prompt, len(data)
    if state.injection is not None and (weights := state.injection.found(request, said, data)):
        _suspect(exchange, scanned, weights, state)
    scanner, result = state.input, request
    if scanner is not None and scanner.may_hold(data):
        counts: dict[str, int] = {}
        scanned.counts.append(counts)
        vault = _vault(exchange, scanned, state) if state.restores else None
        doubts = Doubts()
        result = changed(request, lambda text: scanner.redact(text, counts, vault, doubts))
        if counts:
            _tell(exchange, "prompt", scanner, counts)
    if state.classifier is not None:
        await _ask(exchange, scanned, state.classifier, result)
    return None if result is request or result == request else result


@hookimpl
def tap_response(exchange: Exchange, state: Sanitizer) -> Transform | None:
    scanner = state.output
    vault: Vault | None = exchange.state["sanitize"].get("vault") if state.restores and "sanitize" in exchange.state else None
    if scanner is None and not vault:
        return None
    scanned = exchange.scanned = exchange.scanned or Scanned()
    scanned.answer = state.answer
    counts: dict[str, int] = {}
    scanned.counts.append(counts)
    looking = scanner or _nothing()
    answer = Answer(looking, counts, lambda counts: _tell(exchange, "answer", looking, counts), scanned)
    if vault:
        from clawproxy_sanitize.restore import Restoring

        restoring = Restoring(answer, vault)
        return Transform(restoring.change, restoring.end, streams="window", raw=restoring.passes)
    return Transform(answer.change, answer.end, streams="window", raw=answer.passes)


_empty: list[Scanner] = []


def _nothing() -> Scanner:
    """A scanner that finds nothing: for answers that are only restored."""
    if not _empty:
        _empty.append(Scanner([]))
    return _empty[0]


def _vault(exchange: Exchange, scanned: Scanned, state: Sanitizer) -> Vault:
    from clawproxy_sanitize.restore import Vault

    place = exchange.state.setdefault("sanitize", {})
    vault: Vault | None = place.get("vault")
    if vault is None:
        # Each client key has placeholders of its own: nobody can tell from theirs what another one's mean.
        vault = place["vault"] = Vault(hmac.digest(state.key, exchange.principal.key.encode("utf-8", "replace"), "sha256"))
        scanned.veil = vault.veiled
    return vault


def _suspect(exchange: Exchange, scanned: Scanned, weights: dict[str, float], state: Sanitizer) -> None:
    """Raises Refusal where injections are blocked."""
    scanned.counts.append({f"injection:{name}": 1 for name in weights})
    exchange.state.setdefault("sanitize", {})["injection"] = weights
    if state.settings.injection.input == "block":
        raise Refusal("refused.sanitize", policy="sanitize", extra={"pattern": "injection"})
    exchange.notice(
        "flagged",
        "The prompt holds what looks like instructions to the model from outside.",
        where="prompt",
        patterns=dict.fromkeys(weights, 1),
        score=round(sum(weights.values()), 2),
    )


async def _ask(exchange: Exchange, scanned: Scanned, classifier: Classifier, request: ChatRequest) -> None:
    """Raises Refusal where the classifier objects, or can not be asked."""
    labels = await classifier.objections(exchange, request.model, texts(request))
    if labels is None:
        return
    scanned.counts.append({f"classifier:{label}": 1 for label in labels})
    if classifier.settings.action == "block":
        raise Refusal("refused.sanitize", policy="sanitize", extra={"pattern": f"classifier:{labels[0]}"})
    exchange.notice("flagged", "A classifier objects to the prompt.", where="prompt", patterns=dict.fromkeys(labels, 1))


def _tell(exchange: Exchange, where: str, scanner: Scanner, counts: dict[str, int]) -> None:
    """One notice when something of a new kind was found; the counts go on in `exchange.state["sanitize"]`."""
    exchange.state.setdefault("sanitize", {})[where] = counts
    flagged = {rule.name for rule in scanner.rules if rule.action == "flag"}
    if scanner.hidden == "flag":
        flagged.add(INVISIBLE)
    replaced = {name: count for name, count in counts.items() if name not in flagged}
    only = {name: count for name, count in counts.items() if name in flagged}
    if replaced:
        exchange.notice("redacted", f"Secrets were taken out of the {where}.", where=where, patterns=replaced)
    if only:
        exchange.notice("flagged", f"The {where} holds what looks like secrets.", where=where, patterns=only)
