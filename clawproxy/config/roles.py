"""`[roles.NAME]`: what those who have a role may do. `checks_roles` says what does not fit; docs/authorization.md is the page.

Rule 1: what no role allows is not allowed. `models` has no default; the other fields narrow what `models` opened.
Rule 2: without `[roles]` nothing of this is looked at. With it, whoever has a role has what its roles allow and nothing else; who
        has none keeps its `models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve, field, frozen

from clawproxy.config.policies import NONE, Words
from clawproxy.messages import Grant, Principal

ACTIONS: Final = ("chat", "responses", "embeddings", "count_tokens")
"""`responses` is what comes in OpenAI's Responses format; `chat` all other conversations."""
ANY: Final = Words(("*",))
_RESPONSES: Final = "openai_responses"


@frozen
class RoleConfig:
    models: Words = NONE
    actions: Words = ANY
    providers: Words = ANY
    regions: Words = ANY
    max_output: int | None = None
    """Tokens an answer may have."""
    make_keys: bool = field(default=False)
    """Whether it may make keys, within its own rights, at the admin listener."""


def action_of(surface: str, operation: str) -> str:
    """One of `ACTIONS`."""
    return "responses" if operation == "chat" and surface == _RESPONSES else operation


def grant_of(name: str, role: RoleConfig) -> Grant:
    return Grant(name, role.models, role.actions, role.providers, role.regions, role.max_output, role.make_keys)


def authorized(principal: Principal, roles: Mapping[str, RoleConfig]) -> Principal:
    """With what its roles allow. A role that nobody configured allows nothing; without any role it is as whoever vouches for it
    says: `grants` of () allow nothing, None leaves it to `models`."""
    if not roles:
        return principal if principal.grants is None else evolve(principal, grants=None)
    if not principal.roles:
        return principal
    return evolve(principal, grants=tuple([grant_of(name, roles[name]) for name in principal.roles if name in roles]))
