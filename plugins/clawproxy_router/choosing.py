"""The order in which a request's routes are tried: what can not serve it is left out, each group orders what is left.

Rule 1: a group of any strategy but `priority` leaves out, from itself and all below it, what lacks something the request needs.
        What is then ordered is only that: a strategy prefers, it never forbids.
Rule 2: chance comes from one `Random`, the app's: the same seed, requests and times give the same routes.
Rule 3: what was weighed is kept, bounded (`MOST_TOLD`), so that it can be said afterwards why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field

from clawproxy.context import Considered
from clawproxy.costs import cost_nano
from clawproxy.errors import ClawError
from clawproxy.messages import Route, Usage
from clawproxy_router.affinity import Trail, rank, with_room
from clawproxy_router.learned import Learned
from clawproxy_router.needs import Needs
from clawproxy_router.tree import Group, Leaf

MOST_TOLD: Final = 16
UNPRICED: Final = math.inf
SLOWER: Final = 2.0
"""A cache draws a request of `latency` to a place at most this many times as slow as the fastest."""

Ways = list[list[Leaf]]
"""What a group chooses among: each child's leaves, in that child's order."""


@define(slots=True, eq=False)
class Choice:
    """One request's. After `made`: the routes, and what was weighed."""

    needs: Needs
    learned: Learned
    model: str
    explore: float
    """The share of requests that try another route than the fastest."""
    memory: float
    now: float
    trails: Mapping[str, Trail] = field(factory=dict)
    """By kind of affinity."""
    affinity_load: float = 1.25
    output: float = 0.0
    """Tokens the answer will likely have."""
    scores: dict[Leaf, float] = field(factory=dict)
    left_out: dict[Leaf, str] = field(factory=dict)
    explored: Leaf | None = None
    cached: dict[Leaf, int] = field(factory=dict)
    """Tokens of the prompt expected in a place's cache, where that counted."""

    def made(self, group: Group) -> Sequence[Route]:
        """The routes, best first. Raises ClawError where there is none, by what is lacking."""
        self.output = self.learned.output(self.model, self.needs.input_tokens, self.needs.max_tokens)
        ordered = self._ordered(group, filtered=False)
        if not ordered:
            raise self._refusal()
        first = ordered[0]
        reason = "explore" if first is self.explored else "cached" if first in self.cached else ""
        route = evolve(first.route, reason=reason) if reason else first.route
        self.scores = {leaf: self.scores[leaf] for leaf in ordered if leaf in self.scores}
        self._told = [Considered(*first.key, route.reason, self._score(first), self.cached.get(first))]
        self._told += [Considered(*leaf.key, "", self._score(leaf), self.cached.get(leaf)) for leaf in ordered[1:MOST_TOLD]]
        return [route, *(leaf.other for leaf in ordered[1:])]

    _told: list[Considered] = field(factory=list, init=False)

    @property
    def considered(self) -> Sequence[Considered]:
        """Those that may be taken, best first, then those left out."""
        room = MOST_TOLD - len(self._told)
        return [*self._told, *(Considered(*leaf.key, why) for leaf, why in list(self.left_out.items())[:room])]

    # --- what can serve it -------------------------------------------------------------------------------------------------

    def _ordered(self, group: Group, *, filtered: bool) -> list[Leaf]:
        filtered = filtered or group.strategy != "priority"
        ways: Ways = []
        kept: list[Leaf | Group] = []
        for child in group.children:
            if isinstance(child, Group):
                way = self._ordered(child, filtered=filtered)
            else:
                way = [child] if not filtered or self._can_serve(child) else []
            if way:
                ways.append(way)
                kept.append(child)
        if len(ways) > 1 or group.strategy == "latency":
            arrange = _ARRANGE.get(group.strategy)
            trail = self.trails.get(group.affinity)
            if trail is not None:
                ways = self._by_caches(group, trail, ways, kept)
            elif arrange is not None:
                ways = arrange(self, ways, kept)
        return [leaf for way in ways for leaf in way]

    def _can_serve(self, leaf: Leaf) -> bool:
        needs, why = self.needs, ""
        window = leaf.route.context_tokens
        if not needs.capabilities <= leaf.capabilities:
            why = "incapable"
        elif leaf.quality < needs.quality:
            why = "low_quality"
        elif needs.bound and leaf.region != needs.region:
            why = "other_region"
        elif window is not None and needs.input_tokens + (needs.max_tokens or 0) > window:
            why = "too_long"
        if why:
            self.left_out[leaf] = why
        return not why

    def _refusal(self) -> ClawError:
        words, needs = set(self.left_out.values()), self.needs
        if words == {"too_long"} or ("too_long" in words and words <= {"too_long", "low_quality", "incapable"}):
            return ClawError("context_length_exceeded")
        if "other_region" in words:
            return ClawError("no_route", "No route in this key's region could serve the request.")
        if words == {"low_quality"}:
            sentence = f"No route of this model has a quality of {needs.quality}."
            return ClawError("unsupported_parameter", sentence, param="quality")
        if words:
            sentence = f"No route of this model can serve what the request needs: {', '.join(sorted(needs.capabilities))}."
            return ClawError("unsupported_parameter", sentence, param=_parameter(needs.capabilities))
        return ClawError("no_route")

    def _score(self, leaf: Leaf) -> float | None:
        score = self.scores.get(leaf)
        return None if score is None or not math.isfinite(score) else float(f"{score:.6g}")

    # --- the strategies ----------------------------------------------------------------------------------------------------

    def _by_weight(self, ways: Ways, kept: Sequence[Leaf | Group]) -> Ways:
        """Drawn by weight, one after the other (Efraimidis and Spirakis 2006): the first has its share, and so has the next
        of what is left."""
        chance = self.learned.random.random
        keys = [-math.log(1.0 - chance()) / child.weight if child.weight else math.inf for child in kept]
        return self._sorted(ways, keys)

    def _by_cost(self, ways: Ways, kept: Sequence[Leaf | Group]) -> Ways:
        return self._sorted(ways, [self._dollars(way[0]) for way in ways])

    def _dollars(self, leaf: Leaf, cached: int = 0) -> float:
        """What a request like this one costs there, with so many of its tokens in the cache."""
        price = leaf.price
        if price is None:
            return UNPRICED
        nano = cost_nano(Usage(self.needs.input_tokens, round(self.output), cached_tokens=cached), price)
        return UNPRICED if nano is None else nano / 1e9

    def _by_caches(self, group: Group, trail: Trail, ways: Ways, kept: Sequence[Leaf | Group]) -> Ways:
        """To the cache that has most of the prompt, unless too much is at work there; a cold prompt to where its conversation
        belongs. `cost` goes on comparing dollars, `latency` seconds: there a cache has to be worth it."""
        loads, weights = [self._in_flight(child) for child in kept], [child.weight for child in kept]
        room = with_room(loads, weights, self.affinity_load)
        shares = [trail.expected.get(way[0].key, 0.0) for way in ways]
        cached = [int(min(1.0, share) * self.needs.input_tokens) if free else 0 for share, free in zip(shares, room, strict=True)]
        ranks = [rank(trail.root, way[0].key, weight) for way, weight in zip(ways, weights, strict=True)]
        if group.strategy == "latency":
            return self._by_speed_and_caches(ways, kept, cached)
        self.cached.update({way[0]: tokens for way, tokens in zip(ways, cached, strict=True) if tokens})
        if group.strategy == "cost":
            dollars = [self._dollars(way[0], tokens) for way, tokens in zip(ways, cached, strict=True)]
            return self._sorted(ways, dollars, [(each, not room[at], ranks[at]) for at, each in enumerate(dollars)])
        keys = [(-tokens, not room[at], ranks[at] if room[at] else loads[at]) for at, tokens in enumerate(cached)]
        return self._sorted(ways, [float(load) for load in loads] if group.strategy == "load" else ranks, keys)

    def _by_speed_and_caches(self, ways: Ways, kept: Sequence[Leaf | Group], cached: Sequence[int]) -> Ways:
        """A cold prompt explores as any other, and goes by speed alone."""
        if not any(cached):
            return self._by_speed(ways, kept)
        arranged = self._by_speed(ways, kept, explores=False)
        most = SLOWER * self.scores[arranged[0][0]]
        worth = {way[0]: tokens for way, tokens in zip(ways, cached, strict=True) if tokens and self.scores[way[0]] <= most}
        self.cached.update(worth)
        return sorted(arranged, key=lambda way: -worth.get(way[0], 0))

    def _by_speed(self, ways: Ways, kept: Sequence[Leaf | Group], *, explores: bool = True) -> Ways:
        """The fastest as far as is known; what is not known is tried by one request at a time, and now and then another than
        the fastest, for that may have become it. Each is tried the less often the slower it is, and never forgotten."""
        learned, now = self.learned, self.now
        places = [learned.place(way[0].key) for way in ways]
        known = [place.seconds(self.output, now, self.memory) for place in places]
        worst = max((seconds for seconds in known if seconds is not None), default=0.0)
        scores = [worst + place.in_flight if seconds is None else seconds for place, seconds in zip(places, known, strict=True)]
        untried = [at for at, place in enumerate(places) if known[at] is None and not place.in_flight]
        pick: int | None = None
        if not explores:
            pass
        elif untried:
            pick = untried[0]
        elif len(ways) > 1 and self.explore:
            best = min(range(len(ways)), key=scores.__getitem__)
            each = (len(ways) - 1) / self.explore / (scores[best] or 1.0)
            due = [at for at, place in enumerate(places) if at != best and place.passed_over >= each * scores[at]]
            pick = max(due, key=lambda at: places[at].passed_over, default=None)
        for place in places:
            place.passed_over += 1
        arranged = self._sorted(ways, scores)
        if pick is not None:
            places[pick].passed_over = 0
            way = ways[pick]
            arranged = [way, *(each for each in arranged if each is not way)]
            self.explored = way[0]
        return arranged

    def _by_load(self, ways: Ways, kept: Sequence[Leaf | Group]) -> Ways:
        """The less loaded of two drawn at random (Mitzenmacher 2001), then the others by their load."""
        loads = [self._load(child) for child in kept]
        ready = [at for at, load in enumerate(loads) if math.isfinite(load)] or list(range(len(ways)))
        drawn = ready if len(ready) < 2 else self.learned.random.sample(ready, 2)
        pick = min(drawn, key=loads.__getitem__)
        arranged = self._sorted(ways, loads)
        return [ways[pick], *(way for way in arranged if way is not ways[pick])]

    def _load(self, child: Leaf | Group) -> float:
        if not child.weight:
            return math.inf
        return self._in_flight(child) / child.weight

    def _in_flight(self, child: Leaf | Group) -> int:
        keys = child.places if isinstance(child, Group) else (child.key,)
        return sum(self.learned.place(key).in_flight for key in keys)

    def _by_region(self, ways: Ways, kept: Sequence[Leaf | Group]) -> Ways:
        wanted = self.needs.region
        if wanted is None:
            return ways
        every = [leaf for way in ways for leaf in way]
        return [[leaf for leaf in every if leaf.region == wanted], [leaf for leaf in every if leaf.region != wanted]]

    def _sorted(self, ways: Ways, scores: Sequence[float], keys: Sequence[Any] = ()) -> Ways:
        """By score, or by keys that say more; what is equal stays as it is written."""
        for way, score in zip(ways, scores, strict=True):
            self.scores[way[0]] = score
        return [ways[at] for at in sorted(range(len(ways)), key=(keys or scores).__getitem__)]


_ARRANGE: Mapping[str, Callable[[Choice, Ways, Sequence[Leaf | Group]], Ways]] = {
    "weighted": Choice._by_weight,
    "cost": Choice._by_cost,
    "latency": Choice._by_speed,
    "load": Choice._by_load,
    "region": Choice._by_region,
}
"""`priority` and `capability` take what is left as it is written."""


def _parameter(needed: frozenset[str]) -> str:
    if "tools" in needed:
        return "tools"
    return "response_format" if needed == {"json_schema"} else "messages"
