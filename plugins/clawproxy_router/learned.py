"""What the router knows of routes from using them: how fast each is, how much it has at work, how long answers get.

Rule 1: it is kept in `app.shared`, so that a reload forgets nothing; places are known by provider and model.
Rule 2: everything is bounded (`MOST_PLACES`, `MOST_SORTS`); what is forgotten is learnt again.
Rule 3: a figure rises at once and falls slowly ("peak EWMA"): one slow answer is taken seriously, and forgiven within `memory`
        seconds. Nothing here waits, or asks the time by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Final, cast

from attrs import define, field

from clawproxy.context import App
from clawproxy_router.affinity import Memory

MOST_PLACES: Final = 4096
MOST_SORTS: Final = 4096
LEAST_SHARE: Final = 1 / 16
"""Of a new figure in the average, however soon it follows the one before."""
OUTPUTS_COUNTED: Final = 64
"""Answers after which the average of their lengths begins to forget."""
UNKNOWN_OUTPUT: Final = 256
"""Tokens of an answer, before any was seen."""
FAILED: Final = 2.0
"""A failure counts as an answer this many times as slow as the average, and at least `FAILED_SECONDS`: failing fast must not
draw requests."""
FAILED_SECONDS: Final = 1.0

Key = tuple[str, str]


@define(slots=True, eq=False)
class Average:
    """An average that forgets, and a peak above it that fades. Seconds."""

    mean: float = 0.0
    peak: float = 0.0
    at: float = -math.inf
    """When it was last told."""

    def tell(self, figure: float, now: float, memory: float) -> None:
        if self.at == -math.inf:
            self.mean = self.peak = figure
        else:
            passed = max(0.0, now - self.at)
            faded = self.peak_at(now, memory)
            self.mean += (figure - self.mean) * max(LEAST_SHARE, 1.0 - math.exp(-passed / memory))
            self.peak = max(figure, faded)
        self.at = now

    def peak_at(self, now: float, memory: float) -> float:
        return self.mean + max(0.0, self.peak - self.mean) * math.exp(-max(0.0, now - self.at) / memory)


@define(slots=True, eq=False)
class Place:
    """One model at one provider."""

    in_flight: int = 0
    first_token: Average = field(factory=Average)
    per_token: Average = field(factory=Average)
    passed_over: int = 0
    """Choices by speed since a request was last sent there."""

    def seconds(self, tokens: float, now: float, memory: float) -> float | None:
        """How long an answer of so many tokens would take. None where nothing is known."""
        if self.first_token.at == -math.inf:
            return None
        return self.first_token.peak_at(now, memory) + tokens * self.per_token.peak_at(now, memory)


@define(slots=True, eq=False)
class Learned:
    """One process's. `now` and `random` are the app's."""

    now: Callable[[], float]
    random: Random
    places: dict[Key, Place] = field(factory=dict)
    outputs: dict[tuple[str, int, int], tuple[float, int]] = field(factory=dict)
    """Tokens an answer has, and how many answers said so, by model and the sizes of prompt and limit."""
    caches: Memory = field(factory=Memory)
    """Whose prompt cache has what."""

    def place(self, key: Key) -> Place:
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= MOST_PLACES:
                idle = [each for each, known in self.places.items() if not known.in_flight]
                for each in idle[: MOST_PLACES // 4]:
                    del self.places[each]
            place = self.places[key] = Place()
        return place

    def output(self, model: str, input_tokens: int, max_tokens: int | None) -> float:
        """How many tokens an answer will likely have."""
        known, _ = self.outputs.get(_sort(model, input_tokens, max_tokens), (UNKNOWN_OUTPUT, 0))
        return known if max_tokens is None else min(known, max_tokens)

    def tell_output(self, model: str, input_tokens: int, max_tokens: int | None, tokens: int) -> None:
        sort = _sort(model, input_tokens, max_tokens)
        known, count = self.outputs.get(sort, (0.0, 0))
        if not count and len(self.outputs) >= MOST_SORTS:
            self.outputs.clear()
        count = min(count + 1, OUTPUTS_COUNTED)
        self.outputs[sort] = known + (tokens - known) / count, count

    def tell_failed(self, place: Place, seconds: float, memory: float) -> None:
        """It failed after so long, for a reason of its own."""
        first = place.first_token
        known = first.mean if first.at != -math.inf else 0.0
        first.tell(max(seconds, FAILED * known, FAILED_SECONDS), self.now(), memory)


def _sort(model: str, input_tokens: int, max_tokens: int | None) -> tuple[str, int, int]:
    return model, input_tokens.bit_length(), 0 if max_tokens is None else max_tokens.bit_length()


def learned_of(app: App, now: Callable[[], float]) -> Learned:
    """The process's, made when it is first asked for."""
    learned = app.shared.get("router")
    if learned is None:
        learned = app.shared["router"] = Learned(now, app.random)
    return cast(Learned, learned)
