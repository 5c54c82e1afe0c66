"""What a budget's words mean: scope, limit, soft limit and action. `checks_budgets` says which of them fit together.

Rule 1: amounts are integers: requests, tokens, or nano-dollars.
Rule 2: every refusal is a `ValueError` whose text says what is wrong and, after a semicolon, what would be right.
"""

from __future__ import annotations

import re
from typing import Final, Literal, cast

from attrs import frozen

from clawproxy.config.units import shown

Unit = Literal["requests", "tokens", "input_tokens", "output_tokens", "concurrent", "nano"]
"""What is counted; `nano` are nano-dollars."""
Action = Literal["block", "throttle", "fallback", "notify"]

SCOPES: Final = ("global", "key", "user", "app", "team", "model", "provider")
UNITS: Final = ("requests", "tokens", "input_tokens", "output_tokens", "concurrent")
ACTIONS: Final = ("block", "throttle", "fallback:MODEL", "notify")
NANO: Final = 1_000_000_000
MOST: Final = 2**53 - 1
"""The books' integers end here: nine million dollars."""
_DOLLARS = re.compile(r"\$([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_COUNT = re.compile(r"([0-9][0-9_]{0,23}) ([a-z_]+)")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9])?)%")


@frozen(slots=True)
class Limit:
    unit: Unit
    amount: int


def parse_limit(text: str) -> Limit:
    """`"10 requests"`, `"1_000_000 tokens"`, `"$5.00"`. Raises ValueError with what is wrong and what would be right."""
    text = text.strip()
    if text.startswith("$"):
        match = _DOLLARS.fullmatch(text)
        if match is None:
            raise ValueError(f'"{shown(text)}" is no sum of money; write dollars like "$5.00", with nine decimals at most')
        limit = Limit("nano", int(match[1]) * NANO + int((match[2] or "").ljust(9, "0")))
    else:
        count = _COUNT.fullmatch(text)
        if count is None:
            raise ValueError(f'"{shown(text)}" is no limit; write a number and a unit, like "10 requests", or "$5.00"')
        unit = count[2] if count[2] in UNITS else f"{count[2]}s"
        if unit not in UNITS:
            raise ValueError(f'"{shown(count[2])}" is nothing that is counted; write one of {", ".join(UNITS)}')
        limit = Limit(cast("Unit", unit), int(count[1].replace("_", "")))
    if limit.amount > MOST:
        raise ValueError(f'"{shown(text)}" is more than the books can hold; write a smaller limit')
    return limit


def parse_soft(text: str) -> float:
    """The share in `"80%"`: 0.8. Raises ValueError."""
    match = _SHARE.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError(f'"{shown(text)}" is no share of the limit; write it like "80%"')
    return float(match[1]) / 100


def parse_scope(text: str) -> tuple[str, str]:
    """The kind and the name in `"key:bench"`; no name for `"global"`. Raises ValueError."""
    kind, colon, name = text.partition(":")
    if kind not in SCOPES:
        raise ValueError(
            f'"{shown(text)}" is no scope; write "global", or one of {", ".join(SCOPES[1:])} with a name, like "key:bench"'
        )
    if (kind == "global") == bool(colon):
        right = '"global"' if kind == "global" else f'"{kind}:NAME", or "{kind}:*" for one for each'
        raise ValueError(f'"{shown(text)}" is no scope; write {right}')
    if colon and (not name or len(name) > 256 or not name.isprintable() or ("*" in name and name != "*")):
        raise ValueError(f'"{shown(text)}" names nobody; write "{kind}:NAME", or "{kind}:*" for one for each')
    return kind, name


def parse_action(text: str) -> tuple[Action, str]:
    """The action, and the model of a fallback. Raises ValueError."""
    action, colon, model = text.partition(":")
    if action == "fallback" and model:
        return "fallback", model
    if action not in ("block", "throttle", "notify") or colon:
        raise ValueError(f'"{shown(text)}" is no action; write one of {", ".join(ACTIONS)}')
    return cast("Action", action), ""
