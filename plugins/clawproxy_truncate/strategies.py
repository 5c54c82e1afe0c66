"""Which turns go: each strategy is a pure function from what turns cost to the turns to drop.

Rule 1: the last turns (`keep_last`) and those with a message that its client pinned stay, under every strategy.
Rule 2: no more goes than has to, one turn after the other, in the strategy's order; only a summary makes room in larger steps, so
        that the next turns of a conversation find the same summary, and the provider's cache the same beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from attrs import frozen

STEP: Final = 4
"""A summary makes room in steps of this part of the window."""


@frozen(slots=True)
class Turns:
    """What there is to choose from."""

    costs: Sequence[int]
    """Estimated tokens of each turn."""
    pinned: frozenset[int] = frozenset()
    keep_last: int = 1

    def free(self, *, keep_first: bool = False) -> list[int]:
        """Those that may go, oldest first."""
        end = max(0, len(self.costs) - self.keep_last)
        return [turn for turn in range(1 if keep_first else 0, end) if turn not in self.pinned]


def order(strategy: str, turns: Turns) -> list[int]:
    """The turns that may go, the first to go first."""
    if strategy == "drop_oldest":
        return turns.free()
    if strategy == "middle_out":
        free = turns.free()
        middle = (len(turns.costs) - 1) / 2
        return sorted(free, key=lambda turn: (abs(turn - middle), turn))
    return turns.free(keep_first=True)  # keep_pinned, and what a summary stands for


def chosen(going: Sequence[int], costs: Sequence[int], excess: int) -> list[int] | None:
    """As many of `going` as make this room; None where all of them do not."""
    taken: list[int] = []
    for turn in going:
        if excess <= 0:
            break
        excess -= costs[turn]
        taken.append(turn)
    return taken if excess <= 0 else None


def chosen_in_steps(going: Sequence[int], costs: Sequence[int], excess: int, room: int) -> list[int] | None:
    """As `chosen`, rounded up to a step of the room, as far as there is enough to go."""
    step = max(1, room // STEP)
    most = sum(costs[turn] for turn in going)
    return chosen(going, costs, min(math.ceil(excess / step) * step, max(most, excess)))
