"""Where a request may go once the policies have spoken: a model's tree, and what restrictions leave of it.

Rule: made once for each model and set of restrictions, both of which only the configuration has; a request looks them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from attrs import field, frozen

from clawproxy.config import Config, RestrictConfig, fits
from clawproxy.context import Considered
from clawproxy.errors import Refusal
from clawproxy.messages import Principal, Route
from clawproxy_router.candidates import candidates_for
from clawproxy_router.policies.verdict import Verdict
from clawproxy_router.tree import Group, Leaf, bare, leaves, tree_of

MOST: Final = 1024
"""Places kept; without `[models]` clients may name models without end."""
MOST_TOLD: Final = 16
_ANYBODY: Final = Principal("")


@frozen(slots=True, eq=False)
class Place:
    """A tree of at least one route."""

    tree: Group
    routes: tuple[Route, ...]
    """As `Exchange.candidates` has them."""
    left_out: tuple[Considered, ...] = ()


@frozen(slots=True, eq=False)
class Placing:
    """Of one generation."""

    config: Config
    _known: dict[tuple[str, bool, tuple[str, ...]], Place] = field(factory=dict)

    def place(self, verdict: Verdict, model: str) -> Place | None:
        """Where a request for `model` (as the policies left its name) may go; None where there is no such model. Raises Refusal
        where the policies leave no route of it."""
        restricting = tuple([name for name, _ in verdict.restrictions])
        key = (verdict.choose or model, verdict.choose is not None, restricting)
        place = self._known.get(key)
        if place is None:
            tree = self._tree(*key[:2])
            if tree is None:
                return None
            place = _placed(tree, [restrict for _, restrict in verdict.restrictions])
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = place
        if not place.routes and restricting:
            raise Refusal("refused.plugin", "The policies leave no route for this model.", policy=restricting[-1])
        return place

    def _tree(self, name: str, chosen: bool) -> Group | None:
        if name in self.config.models:
            return tree_of(self.config, name)
        if chosen and self.config.models:  # PROVIDER/MODEL: the first route that leads there says what is known of it
            for model in self.config.models:
                for leaf in leaves(tree_of(self.config, model)):
                    if f"{leaf.route.provider}/{leaf.route.model}" == name:
                        return Group("priority", (leaf,), 1, (leaf.key,))
            return None
        found = candidates_for(self.config, name, _ANYBODY)
        return bare(self.config, found) if found else None


def _placed(tree: Group, restrictions: Sequence[RestrictConfig]) -> Place:
    kept = pruned(tree, lambda leaf: all(allowed(leaf, each) for each in restrictions)) if restrictions else tree
    inside = {leaf.key for leaf in leaves(kept)}
    outside = dict.fromkeys(leaf.key for leaf in leaves(tree) if leaf.key not in inside)
    return Place(kept, tuple([leaf.route for leaf in leaves(kept)]), tuple([Considered(*key, "policy") for key in outside]))


def pruned(tree: Group, keeps: Callable[[Leaf], bool]) -> Group:
    """With those leaves only; a group without any is gone."""
    children: list[Leaf | Group] = []
    for child in tree.children:
        if isinstance(child, Group):
            group = pruned(child, keeps)
            if group.children:
                children.append(group)
        elif keeps(child):
            children.append(child)
    places = dict.fromkeys(key for child in children for key in (child.places if isinstance(child, Group) else (child.key,)))
    return Group(tree.strategy, tuple(children), tree.weight, tuple(places), tree.affinity, tree.sticky)


def allowed(leaf: Leaf, restrict: RestrictConfig) -> bool:
    """Whether a route fits all that the restriction names. A route without a region is in none."""
    if restrict.provider and not fits(leaf.route.provider, restrict.provider):
        return False
    if restrict.region and (leaf.region is None or not fits(leaf.region, restrict.region)):
        return False
    return not restrict.route or fits(f"{leaf.route.provider}/{leaf.route.model}", restrict.route)


def told(considered: Sequence[Considered], place: Place) -> Sequence[Considered]:
    """With those that the policies left out."""
    return [*considered, *place.left_out][:MOST_TOLD] if place.left_out else considered
