"""What one attempt costs at the meter: microseconds of CPU from its opening to its closing, and of the writer that folds it.

Not the least of repetitions over a tight loop, but rounds of 200 attempts over a real journal and database, for each number of
budgets in turn, so that a busy machine is busy for all of them; the best round counts.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from attrs import evolve, frozen

import clawproxy_meter
from clawproxy.config import BudgetConfig, Config, ModelConfig, Price, PriceConfig, ProviderConfig, RouteConfig
from clawproxy.context import App, Attempt, Exchange, new_id
from clawproxy.events import Batch, End, Finish, Text, UsageReport
from clawproxy.hookspecs import Observe, Transform
from clawproxy.messages import Principal, Usage
from clawproxy.stores.sqlite import SqliteStore
from clawproxy.testing.factories import make_attempt, make_exchange, make_request, make_route

_KEY = BudgetConfig("key:*", "$1000000", "month")
_BUDGETS: Mapping[str, Mapping[str, BudgetConfig]] = {
    "no budget": {},
    "one budget": {"key": _KEY},
    "four budgets": {
        "key": _KEY,
        "user": BudgetConfig("user:*", "1000000000000 tokens", "day"),
        "team": BudgetConfig("team:*", "1000000000000 output_tokens", "hour"),
        "all": BudgetConfig("global", "1000000000 requests", "minute"),
    },
}
_MODELS = {"test-model": ModelConfig((RouteConfig("scripted", "test-model"),), price=PriceConfig(Price(10**6), Price(2 * 10**6)))}
_ATTEMPTS = 200
_REQUEST = make_request("Say hello to the world and tell me what you can do for me today.", max_tokens=256)
_USAGE = Usage(12, 50)
_READS = (Batch([Text(" tok")] * 50), Batch([Finish("stop"), UsageReport(_USAGE), End()]))


@frozen
class Service:
    store: SqliteStore
    state: clawproxy_meter.Meter
    instance: str

    def attempt(self) -> tuple[Exchange, Attempt]:
        exchange = make_exchange(principal=Principal("bench", user="ann", team="red"), instance=self.instance)
        return exchange, make_attempt(id=new_id(), route=make_route())

    async def round(self) -> tuple[float, float]:
        """Microseconds an attempt: at the meter, and folding."""
        made = [self.attempt() for _ in range(_ATTEMPTS)]
        gc.collect()
        gc.disable()  # as `timeit` does: what is collected here is what the round's preparation left
        began = time.process_time()
        for exchange, attempt in made:
            assert attempt.route is not None
            async with clawproxy_meter.open_attempt(exchange, _REQUEST, attempt.route, attempt, self.state):
                tap = clawproxy_meter.tap_response(exchange, attempt)
                attempt.sent, attempt.status, attempt.usage = True, 200, _USAGE
                for read in _READS:
                    if isinstance(tap, Observe):
                        tap.see(read)
                    elif isinstance(tap, Transform):
                        tap.change(read.events)
                if tap is not None and tap.end is not None:
                    tap.end()
                attempt.outcome = "complete"
        metered = time.process_time()
        await self.store.flush()
        gc.enable()
        return (metered - began) / _ATTEMPTS * 1e6, (time.process_time() - metered) / _ATTEMPTS * 1e6


async def metering(seconds: float) -> Sequence[tuple[str, float]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clawproxy-micro-")))
        base = Config(providers={"scripted": ProviderConfig(dialect="scripted")}, models=_MODELS)
        services: dict[str, Service] = {}
        for name, budgets in _BUDGETS.items():
            store = SqliteStore.open(folder / name, "bench")
            stack.push_async_callback(store.aclose)
            app = App(evolve(base, budgets=budgets), store, name, None)
            await stack.enter_async_context(clawproxy_meter.lifespan(app))
            services[name] = Service(store, clawproxy_meter.configure(None, app), name)
        best = dict.fromkeys(services, (float("inf"), float("inf")))
        began = time.perf_counter()
        while time.perf_counter() - began < 6 * seconds:
            for name, service in services.items():
                metered, folded = await service.round()
                best[name] = min(best[name][0], metered), min(best[name][1], folded)
    figures: list[tuple[str, float]] = []
    for name, (metered, folded) in best.items():
        figures += [(f"meter: an attempt under {name}", metered), (f"meter: folding it, under {name}", folded)]
    return figures
