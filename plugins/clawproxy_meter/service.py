"""The running gateway a plugin's hooks belong to.

Hooks are functions of a module and get no `App`; an exchange names its instance, so that is how it is found. Two gateways in one
process (tests) do not meet.
"""

from __future__ import annotations

from types import TracebackType

from clawproxy.context import App, Exchange
from clawproxy_meter.budgets import budgets_of

_running: dict[str, App] = {}


def service_of(exchange: Exchange) -> App:
    """Raises RuntimeError outside of `lifespan`."""
    app = _running.get(exchange.instance)
    if app is None:
        if len(_running) != 1:
            raise RuntimeError(f"no gateway {exchange.instance!r} is running: enter the meter's lifespan first")
        (app,) = _running.values()
    return app


class Service:
    """The plugin's `lifespan`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __aenter__(self) -> None:
        _running[self._app.instance] = self._app
        budgets_of(self._app)

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if _running.get(self._app.instance) is self._app:
            del _running[self._app.instance]
