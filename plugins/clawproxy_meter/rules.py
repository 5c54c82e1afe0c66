"""The budgets of a configuration, as what they count: which accounts an attempt is charged to, and with how much.

Rule 1: pure; the store knows what was used, and by whom.
Rule 2: a budget for one by name takes the place of the one for each (`user:*`) that counts the same.
Rule 3: what an attempt may cost at most is asked of the price itself (`most_cost`), whatever it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from clawproxy.config import Action, PriceConfig, Unit, parse_action, parse_limit, parse_scope, parse_soft
from clawproxy.costs import most_nano
from clawproxy.stores.base import UNLIMITED, Account, Claim, Window

if TYPE_CHECKING:
    from clawproxy.config import BudgetConfig
    from clawproxy.context import Exchange

OF_OUTPUT: Final = frozenset({"tokens", "output_tokens", "nano"})
"""Units that the length of an answer counts in."""
AT_ONCE: Final = frozenset({"requests", "concurrent"})
"""Units of which a request's own part is known before it begins."""
COVERS: Final = 4096
_NAMED_BY: Final = ("key", "user", "team", "app", "model", "provider", "own")
"""`key` is the one that made the caller's, where one did: what it makes counts against its own budgets."""
TIGHT_BYTES: Final = 2
"""Bytes that a token of a prompt has at least, as `tight` takes it."""


@frozen(slots=True)
class Rule:
    """One budget."""

    name: str
    kind: str
    who: str
    """`*` for each; empty for `global`."""
    unit: Unit
    window: Window
    sliding: bool
    limit: int
    soft: int | None
    """The amount from which on it is told."""
    action: Action
    model: str
    """Of a fallback."""
    tight: bool
    words: str
    """`10 requests a day`."""
    hard: int
    """The limit of its claims."""

    def account(self, scope: str) -> Account:
        return Account(scope, self.unit, self.window, self.sliding)


Applied = tuple[Rule, str]
"""A budget, and the scope it has for one request: `user:alice` of `user:*`."""


@frozen(slots=True)
class Cover:
    """The budgets that an attempt comes under; the same for all of one caller, model and provider."""

    applied: tuple[Applied, ...]
    counts_answer: bool
    strict: bool
    """Whether the answer is counted in bytes."""
    dollars: bool
    watched: bool
    """Whether there may be something to tell before the limit."""
    throttled: bool


@frozen(slots=True)
class Rules:
    """All of them."""

    rules: Sequence[Rule] = ()
    named: frozenset[tuple[str, str, Unit, Window, bool]] = field(default=frozenset())
    """What those for one by name count, so that those for each leave it out."""
    covers: dict[tuple[str | None, ...], Cover | None] = field(factory=dict)
    """Kept ready, begun anew when full."""

    def cover(self, exchange: Exchange, model: str, provider: str) -> Cover | None:
        """None where it comes under none."""
        principal = exchange.principal
        user = exchange.user if exchange.user is not None else principal.user
        app = exchange.app if exchange.app is not None else principal.app
        key = (principal.maker or principal.key, user, principal.team, app, model, provider, principal.key)
        try:
            return self.covers[key]
        except KeyError:
            pass
        if len(self.covers) >= COVERS:
            self.covers.clear()
        names = dict(zip(_NAMED_BY, key, strict=True))
        found = self.covers[key] = _cover(self._of(names))
        return found

    def _of(self, names: Mapping[str, str | None]) -> tuple[Applied, ...]:
        found: list[Applied] = []
        for rule in self.rules:
            kind, who = rule.kind, rule.who
            if kind == "global":
                found.append((rule, "global"))
                continue
            name = names[kind]
            if kind == "key" and who == names["own"]:  # a key that another made: its own budget, beside its maker's
                name = who
            if name and (who == name or (who == "*" and (kind, name, rule.unit, rule.window, rule.sliding) not in self.named)):
                found.append((rule, f"{kind}:{name}"))
        return tuple(found)

    def named_for(self, name: str, exchange: Exchange) -> Applied | None:
        """The budget `name`, as this exchange comes under it."""
        route = exchange.route
        cover = self.cover(exchange, exchange.requested_model, "" if route is None else route.provider)
        return None if cover is None else next((each for each in cover.applied if each[0].name == name), None)


def _cover(applied: tuple[Applied, ...]) -> Cover | None:
    if not applied:
        return None
    rules = [rule for rule, _ in applied]
    return Cover(
        applied,
        counts_answer=any(rule.unit in OF_OUTPUT for rule in rules),
        strict=any(rule.unit in OF_OUTPUT and not rule.tight for rule in rules),
        dollars=any(rule.unit == "nano" for rule in rules),
        watched=any(rule.soft is not None or rule.action == "notify" for rule in rules),
        throttled=any(rule.action == "throttle" for rule in rules),
    )


def compiled(budgets: Mapping[str, BudgetConfig]) -> Rules:
    """Of a configuration that was checked."""
    rules = []
    for name, budget in budgets.items():
        kind, who = parse_scope(budget.scope)
        limit = parse_limit(budget.limit)
        action, model = parse_action(budget.action)
        window: Window = budget.window or "total"
        rules.append(
            Rule(
                name=name,
                kind=kind,
                who=who,
                unit=limit.unit,
                window=window,
                sliding=budget.sliding,
                limit=limit.amount,
                soft=None if budget.soft is None else max(1, round(limit.amount * parse_soft(budget.soft))),
                action=action,
                model=model,
                tight=budget.mode == "tight",
                hard=UNLIMITED if action == "notify" else limit.amount,
                words=_words(budget.limit.strip(), limit.unit, budget.window, budget.sliding),
            )
        )
    named = frozenset((rule.kind, rule.who, rule.unit, rule.window, rule.sliding) for rule in rules if rule.who != "*")
    return Rules(tuple(rules), named)


def _words(limit: str, unit: Unit, window: str | None, sliding: bool) -> str:
    if unit == "concurrent":
        return f"{limit.partition(' ')[0]} at once"
    if window in (None, "total"):
        return f"{limit} in all"
    article = "an" if window == "hour" else "a"
    return f"{limit} in any {window}" if sliding else f"{limit} {article} {window}"


_rates: dict[int, tuple[PriceConfig, int, int]] = {}
"""Pico-dollars of a token at most, of the prompt and of the answer, by the identity of a price without tiers."""


def most_cost(given: int, taken: int, price: PriceConfig, tier: str | None = None) -> int:
    """Nano-dollars of so many tokens at most, whatever kinds of tokens the provider takes them for. A service tier that was asked
    for need not be given: the dearest one counts then."""
    own = _rates.get(id(price))
    if own is not None and own[0] is price and tier is None:  # nearly always: 12 -> 0.5 us
        return -((given * own[1] + taken * own[2]) // -1000)
    if tier is None and not price.tiers and not price.request:
        if len(_rates) >= COVERS:
            _rates.clear()
        _rates[id(price)] = price, most_nano(price, 1000, 0) or 0, most_nano(price, 0, 1000) or 0
    most = most_nano(price, given, taken) or 0
    if tier is not None:
        most = max(most, *(most_nano(price, given, taken, each) or 0 for each in (tier, *price.service)))
    return most


class Need:
    """What one attempt may use at most, for an answer of a given length.

    Args:
        given: upper bound of the prompt, in tokens, as `strict` takes it.
        tight: as `tight` does.
        price: None where there is none; then no budget counts dollars.
        tier: the service tier that was asked for.
    """

    __slots__ = ("_given", "_price", "_tier", "_tight")

    def __init__(self, given: int, tight: int, price: PriceConfig | None, tier: str | None = None) -> None:
        self._given = given
        self._tight = tight
        self._price = price
        self._tier = tier

    def amount(self, rule: Rule, output: int) -> int:
        unit = rule.unit
        if unit in AT_ONCE:
            return 1
        given = self._tight if rule.tight else self._given
        if unit == "nano":
            assert self._price is not None
            return most_cost(given, output, self._price, self._tier)
        return given + output if unit == "tokens" else given if unit == "input_tokens" else output

    def longest(self, rule: Rule, room: int, output: int) -> int:
        """The longest answer up to `output` that fits in `room`; below 0 where none does."""
        if rule.unit not in OF_OUTPUT or self.amount(rule, 0) > room:
            return -1
        least, most = 0, output
        while least < most:
            middle = (least + most + 1) // 2
            if self.amount(rule, middle) <= room:
                least = middle
            else:
                most = middle - 1
        return least

    def more(self, rule: Rule, output: int, extra: int) -> int:
        """What `extra` tokens of an answer, beyond `output`, come to."""
        return self.amount(rule, output + extra) - self.amount(rule, output)


def claim_of(applied: Applied, amount: int) -> Claim:
    rule, scope = applied
    return Claim(scope, rule.unit, rule.window, rule.sliding, amount, rule.hard, rule.name)
