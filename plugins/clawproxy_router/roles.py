"""What a caller's roles, and where its data may go, leave of a model's routes.

Rule 1: a role prefers nothing: what no grant reaches is left out (`role`), as is what is not where the data may go (`residency`);
        the strategy orders what is left.
Rule 2: what is left of a tree depends on the configuration, the grants and the residency alone, so it is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from clawproxy.config import Config, Residency, action_of
from clawproxy.context import Considered
from clawproxy.messages import Grant, Principal
from clawproxy_router.candidates import candidates_for
from clawproxy_router.policies.placing import pruned
from clawproxy_router.tree import Group, Leaf, bare, leaves, tree_of

if TYPE_CHECKING:
    from clawproxy.context import Exchange
    from clawproxy.messages import ChatRequest

MOST: Final = 1024
"""Trees kept; begun anew when full."""
MOST_TOLD: Final = 16
Kept = tuple[Group, tuple[Considered, ...]]
"""What is left, and what was left out."""
Tree = str | Group
"""A model's own, by its name, or what policies made of it."""


@frozen(slots=True, eq=False)
class Reach:
    """Of one generation."""

    config: Config
    _known: dict[tuple[Tree, tuple[Grant, ...] | None, Residency | None], Kept] = field(factory=dict)

    def left(self, tree: Tree, exchange: Exchange, request: ChatRequest) -> Kept:
        principal, residency = exchange.principal, exchange.residency
        grants = None
        if principal.grants is not None:
            grants = principal.granting(request.model, action_of(exchange.surface, request.operation))
        key = (tree, grants, residency)
        kept = self._known.get(key)
        if kept is None:
            if len(self._known) >= MOST:
                self._known.clear()
            kept = self._known[key] = _kept(self._tree(tree, principal), grants, residency)
        return kept

    def _tree(self, tree: Tree, principal: Principal) -> Group:
        if isinstance(tree, Group):
            return tree
        if tree in self.config.models:
            return tree_of(self.config, tree)
        return bare(self.config, candidates_for(self.config, tree, principal))


def is_bound(exchange: Exchange) -> bool:
    """Whether its roles, or its residency, may leave out a route."""
    principal = exchange.principal
    if exchange.residency is not None:
        return True
    return principal.grants is not None and not all(grant.is_everywhere for grant in principal.grants)


def _kept(tree: Group, grants: tuple[Grant, ...] | None, residency: Residency | None) -> Kept:
    def against(leaf: Leaf) -> str | None:
        if grants is not None and not any(grant.reaches(leaf.route.provider, leaf.region) for grant in grants):
            return "role"
        return None if residency is None or residency.allows(leaf.route.provider, leaf.route.model) else "residency"

    outside: dict[tuple[str, str], str] = {}
    kept = pruned(tree, lambda leaf: against(leaf) is None)
    inside = {leaf.key for leaf in leaves(kept)}
    for leaf in leaves(tree):
        why = against(leaf)
        if why is not None and leaf.key not in inside and outside.get(leaf.key) != "residency":
            outside[leaf.key] = why
    return kept, tuple([Considered(*key, why) for key, why in list(outside.items())[:MOST_TOLD]])
