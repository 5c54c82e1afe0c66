"""The policies in order, and what they come to for one request."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import define, evolve, field, frozen

from clawproxy.config import Config, PolicyConfig, RestrictConfig
from clawproxy.context import RuleHit
from clawproxy.errors import ConfigError, Refusal
from clawproxy.messages import ChatRequest
from clawproxy_router.policies.conditions import Check, Share, condition
from clawproxy_router.policies.facts import Facts, RequestFacts

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange

BUDGETS = "budgets"
"""Where in `App.shared` the budgets' state is found, a `BudgetState`."""


class BudgetState(Protocol):
    """What budgets tell policies."""

    def used(self, name: str, exchange: Exchange) -> float | None:
        """How much of it is used in its window now, by whoever the exchange is from where each has one of their own: 1.0 is all
        of it. None where it is not known. Synchronous, and cheap."""


@define(slots=True, eq=False)
class Verdict:
    """What the policies come to. Empty where none applied."""

    rules: list[RuleHit] = field(factory=list)
    """In order, one for each thing that was done, or in a shadow would have been."""
    refused: str | None = None
    """The sentence."""
    refused_by: str = ""
    model: str | None = None
    model_by: str = ""
    choose: str | None = None
    restrictions: tuple[tuple[str, RestrictConfig], ...] = ()
    cap: int | None = None
    cap_by: str = ""
    unknown: list[str] = field(factory=list)
    """Policies whose conditions could not be decided."""

    @property
    def moves(self) -> bool:
        """Whether it changes where the request may go."""
        return self.model is not None or self.choose is not None or bool(self.restrictions)


@frozen(slots=True, eq=False)
class Policy:
    name: str
    config: PolicyConfig
    when: Check | None
    unless: Check | None

    def applies(self, facts: Facts) -> bool | None:
        holds = True if self.when is None else self.when(facts)
        if holds is False or self.unless is None:
            return holds
        excepted = self.unless(facts)
        if excepted is True:
            return False
        return None if excepted is None else holds


@frozen(slots=True, eq=False)
class Policies:
    """All of one generation."""

    each: Sequence[Policy]

    def verdict(self, facts: Facts, assumed: Collection[str] = ()) -> Verdict:
        """What they come to. `assumed`: policies that are taken to apply where it is not known whether they do."""
        made = Verdict()
        for policy in self.each:
            applies = policy.applies(facts)
            if applies is None:
                made.unknown.append(policy.name)
                applies = policy.name in assumed
            if applies and _do(policy, made, facts):
                break
        return made

    def prepared(self, exchange: Exchange, request: ChatRequest, app: App) -> tuple[Verdict, ChatRequest]:
        """The verdict on a request at work, recorded and told; and the request as it goes on. Raises Refusal."""
        verdict = self.verdict(RequestFacts(exchange, request))
        told = exchange.rules  # there are some where the client has said more meanwhile
        new = [hit for hit in verdict.rules if hit not in told] if told else verdict.rules
        if new:
            exchange.rules = (*told, *new)
            for hit in new:
                shadow = "true" if hit.shadow else "false"
                app.count("clawproxy_policy_verdicts_total", policy=hit.rule, action=hit.action, shadow=shadow)
        if verdict.refused is not None:
            raise Refusal("refused.plugin", verdict.refused, policy=verdict.refused_by)
        asked = request.max_tokens
        if verdict.cap is not None and request.operation == "chat" and (asked is None or asked > verdict.cap):
            if asked is not None:
                sentence = f"max_tokens was lowered to {verdict.cap}."
                exchange.notice("max_tokens_clamped", sentence, asked=asked, max_tokens=verdict.cap, policy=verdict.cap_by)
            request = evolve(request, max_tokens=verdict.cap)
        if verdict.model is not None:
            sentence = "Another model answers than was asked for."
            exchange.notice("model_rewritten", sentence, asked=request.model, model=verdict.model, policy=verdict.model_by)
            request = evolve(request, model=verdict.model)
        return verdict, request


def _do(policy: Policy, made: Verdict, facts: Facts) -> bool:
    """Add what an applying policy does to the verdict; whether the list ends with it."""
    config, name = policy.config, policy.name
    live = not config.shadow
    done: list[str] = []
    if config.refuse is not None:
        done.append("refuse")
        if live:
            made.refused, made.refused_by = config.refuse, name
    if made.model is None and made.choose is None:
        if config.model is not None and facts.words("model") != (config.model,):
            done.append("model")
            if live:
                made.model, made.model_by = config.model, name
        if config.choose is not None:
            done.append("choose")
            if live:
                made.choose = config.choose
    if config.restrict is not None:
        done.append("restrict")
        if live:
            made.restrictions = (*made.restrictions, (name, config.restrict))
    if config.cap is not None and (made.cap is None or config.cap < made.cap):
        done.append("cap")
        if live:
            made.cap, made.cap_by = config.cap, name
    if config.final and live and not done:
        done.append("final")
    made.rules += [RuleHit(name, action, config.shadow) for action in done]
    return live and (config.final or config.refuse is not None)


def compiled(config: Config, app: App | None = None) -> Policies | None:
    """The policies of a configuration; None where it has none. Raises ConfigError."""
    return None if not config.policies else policies_of(config.policies, _share(app))


def policies_of(configured: Mapping[str, PolicyConfig], share: Share) -> Policies:
    """Raises ConfigError: for what was not checked before (`config.checks_policies`)."""
    made, problems = [], []
    for name, each in configured.items():
        try:
            sides = [None if side is None else condition(side, share) for side in (each.when, each.unless)]
            made.append(Policy(name, each, *sides))
        except (ValueError, LookupError) as error:
            problems.append(f"policies.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return Policies(tuple(made))


def _share(app: App | None) -> Share:
    def share(budget: str, facts: Facts) -> float | None:
        state: BudgetState | None = None if app is None else app.shared.get(BUDGETS)
        return state.used(budget, facts.exchange) if state is not None and isinstance(facts, RequestFacts) else None

    return share
