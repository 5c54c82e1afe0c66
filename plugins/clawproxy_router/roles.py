"""What a caller's roles leave of a model's routes, and a plan for that.

Rule 1: a role prefers nothing: what no grant reaches is left out (`role`), and the strategy orders what is left.
Rule 2: what is left of a tree depends on the configuration and the grants alone, so it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from clawproxy.config import Config, action_of
from clawproxy.context import Considered
from clawproxy.messages import Grant, Principal
from clawproxy_router.candidates import candidates_for
from clawproxy_router.policies.placing import pruned
from clawproxy_router.tree import Group, Leaf, leaves, tree_of

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
    _known: dict[tuple[Tree, tuple[Grant, ...]], Kept] = field(factory=dict)

    def left(self, tree: Tree, exchange: Exchange, request: ChatRequest) -> Kept:
        grants = exchange.principal.granting(request.model, action_of(exchange.surface, request.operation))
        kept = self._known.get((tree, grants))
        if kept is None:
            if len(self._known) >= MOST:
                self._known.clear()
            kept = self._known[tree, grants] = _kept(self._tree(tree, exchange.principal), grants)
        return kept

    def _tree(self, tree: Tree, principal: Principal) -> Group:
        if isinstance(tree, Group):
            return tree
        if tree in self.config.models:
            return tree_of(self.config, tree)
        return Group("priority", tuple([Leaf(route, route) for route in candidates_for(self.config, tree, principal)]))


def is_bound(principal: Principal) -> bool:
    """Whether its roles may leave out a route."""
    return principal.grants is not None and not all(grant.is_everywhere for grant in principal.grants)


def _kept(tree: Group, grants: tuple[Grant, ...]) -> Kept:
    def reaches(leaf: Leaf) -> bool:
        return any(grant.reaches(leaf.route.provider, leaf.region) for grant in grants)

    allowed: Callable[[Leaf], bool] = reaches
    kept = pruned(tree, allowed)
    inside = {leaf.key for leaf in leaves(kept)}
    outside = dict.fromkeys(leaf.key for leaf in leaves(tree) if leaf.key not in inside)
    return kept, tuple([Considered(*key, "role") for key in list(outside)[:MOST_TOLD]])
