"""One attempt, watched: it counts as in flight while it lasts, and how long things took is learnt when it is over."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from types import TracebackType

from clawproxy.context import Attempt, Exchange
from clawproxy.hookspecs import DONE
from clawproxy.messages import ChatRequest
from clawproxy_router.affinity import Trail, learn
from clawproxy_router.learned import Learned
from clawproxy_router.needs import Needs
from clawproxy_router.plan import ELSEWHERE

GOOD = frozenset({"complete", "truncated"})


class Watch:
    """An attempt's context. Entering and leaving it wait for nothing."""

    __slots__ = (
        "_asked", "_attempt", "_began", "_exchange", "_learned", "_memory", "_model", "_place", "_trails", "_ttl", "_upstream",
    )  # fmt: skip

    def __init__(
        self,
        learned: Learned,
        exchange: Exchange,
        request: ChatRequest,
        attempt: Attempt,
        asked: Needs | None,
        memory: float,
        trails: Iterable[Trail] = (),
        ttl: float = 0.0,
    ) -> None:
        self._learned = learned
        self._exchange = exchange
        self._attempt = attempt
        self._asked = asked
        self._memory = memory
        self._model = request.model
        self._place = learned.place((attempt.route.provider, attempt.route.model))
        self._began = 0.0
        self._upstream = 0.0
        self._trails = trails
        self._ttl = ttl

    def __aenter__(self) -> Awaitable[None]:
        self._began = self._learned.now()
        self._place.passed_over = 0
        self._upstream = 0.0 if self._attempt.timing is not None else self._exchange.timing.upstream or 0.0
        self._place.in_flight += 1
        return DONE

    def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Awaitable[None]:
        self._place.in_flight -= 1
        self._learn()
        return DONE

    def _learn(self) -> None:
        attempt, place, learned = self._attempt, self._place, self._learned
        timing = self._exchange.timing if attempt.timing is None else attempt.timing
        if attempt.error is not None and attempt.error.slug in ELSEWHERE and attempt.error.slug != "timeout.queue":
            learned.tell_failed(place, learned.now() - self._began, self._memory)
            for trail in self._trails:
                learned.caches.forget(trail, (attempt.route.provider, attempt.route.model))
            return
        now, first = learned.now(), timing.first_token
        if first is None or not attempt.content:
            # Stopped by its client before it said anything: it takes at least this long.
            waited = now - self._began
            if attempt.sent and waited > place.first_token.mean > 0.0:
                place.first_token.tell(waited, now, self._memory)
            return
        for trail in self._trails:
            learn(learned.caches, trail, (attempt.route.provider, attempt.route.model), self._ttl, now, attempt.usage)
        place.first_token.tell(first, now, self._memory)
        tokens = attempt.usage.output_tokens if attempt.usage is not None else None
        if attempt.outcome not in GOOD or type(tokens) is not int or tokens < 1:
            return
        rest = (timing.upstream or 0.0) - self._upstream - first
        place.per_token.tell(max(0.0, rest) / tokens, now, self._memory)
        if self._asked is not None:
            learned.tell_output(self._model, self._asked.input_tokens, self._asked.max_tokens, min(tokens, 1 << 24))
