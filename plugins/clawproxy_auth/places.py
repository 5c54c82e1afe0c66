"""Who may ask the authorization server now: `MOST_AT_ONCE` places, shared so that a stranger's junk keeps nobody else out.

Rule 1: a free place is anybody's.
Rule 2: where none is free, a token that the server vouched for before takes the place of one that nobody knows; and one that
        nobody knows takes it from the address that has most of them, where that has two more than its own. So it takes as many
        addresses as there are places to keep out a new token, and no number of them keeps out one that is in use.
Rule 3: memory is bounded. A token is known by its digest only.

Synchronous: what is decided here is decided at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from attrs import define

from clawproxy_auth.throttle import network

MOST_AT_ONCE: Final = 64
MOST_KNOWN: Final = 10_000


@define(eq=False)
class Place:
    give_up: Callable[[], None]
    """Ends the question that has it."""
    network: bytes | None
    """Where a token comes from that nobody knows; None for one that is known."""


class Places:
    """One process's, across reloads."""

    def __init__(self) -> None:
        self._taken = 0
        self._strangers: dict[bytes, list[Place]] = {}
        """By network, in the order in which they were taken."""
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def take(self, name: bytes, peer: str, give_up: Callable[[], None]) -> Place | None:
        """A place for the token of this digest, to be given back with `leave`; None where there is none for it. Whoever had it
        before is told to give up."""
        known = name in self._known
        place = Place(give_up, None if known else network(peer))
        if known:
            self._known.move_to_end(name)
        if self._taken >= MOST_AT_ONCE:
            most = max(self._strangers.values(), key=len, default=[])
            own = 0 if place.network is None else len(self._strangers.get(place.network, ())) + 1
            if len(most) <= own:
                return None
            loser = most[-1]  # the others have less to wait
            self.leave(loser)
            loser.give_up()
        self._taken += 1
        if place.network is not None:
            self._strangers.setdefault(place.network, []).append(place)
        return place

    def leave(self, place: Place) -> None:
        """Once more does nothing, for those that were taken away."""
        if place.network is not None:
            places = self._strangers.get(place.network, [])
            if place not in places:
                return
            places.remove(place)
            if not places:
                del self._strangers[place.network]
        self._taken -= 1

    def vouched(self, name: bytes, good: bool) -> None:
        """What the server said of it."""
        self._known.pop(name, None)
        if good:
            self._known[name] = None
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
