"""Finding plugins and checking their hooks, once per process.

Rule 1: pluggy discovers, validates names and arguments, and nothing more: no hook is ever called through it (its order is last
        in, first out; results do not thread; coroutines come back un-awaited).
Rule 2: the built-ins come in by the same entry point as everybody else.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from clawproxy import hookspecs
from clawproxy.context import Registry
from clawproxy.errors import ConfigError

ASYNC_HOOKS = frozenset({"authenticate", "prepare_request", "choose_route"})
EITHER = frozenset({"exchange_closed"})
"""A plain one has nothing to wait for."""


def installed() -> dict[str, EntryPoint]:
    """The plugins this Python can see, by name; nothing is imported."""
    return {point.name: point for point in entry_points(group="clawproxy")}


class Plugins:
    """The plugins of one process, loaded and registered.

    Args:
        names: which to load, by entry-point name.
        extra: plugin objects by name, for tests and embedding; they need no entry point.

    Raises:
        ConfigError: unknown names, hooks of the wrong shape, a plugin that fails to import or to register; all at once.
    """

    def __init__(self, names: Iterable[str], extra: Mapping[str, object] | None = None) -> None:
        self.manager = pluggy.PluginManager("clawproxy")
        self.manager.add_hookspecs(hookspecs)
        self.registry = Registry()
        self.names: list[str] = []
        problems: list[str] = []
        available = {} if extra is not None and set(names) <= set(extra) else installed()
        for name in dict.fromkeys([*names, *(extra or {})]):
            try:
                plugin = extra[name] if extra and name in extra else _load(name, available)
                self._register(name, plugin)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def _register(self, name: str, plugin: object) -> None:
        try:
            self.manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            raise ConfigError([f"plugin {name}: {error}"]) from error
        problems = [problem for impl in self._hookimpls(name) for problem in _check(name, impl)]
        if problems:
            raise ConfigError(problems)
        self.names.append(name)
        for impl in self._hookimpls(name):
            if impl.function.__name__ == "register":
                impl.function(self.registry)

    def _hookimpls(self, name: str) -> list[pluggy.HookImpl]:
        plugin = self.manager.get_plugin(name)
        callers = self.manager.get_hookcallers(plugin) or []
        return [impl for caller in callers for impl in caller.get_hookimpls() if impl.plugin_name == name]

    def implementations(self, hook: str, order: Iterable[str]) -> list[pluggy.HookImpl]:
        """A hook's implementations in the operator's order; plugins not in it are left out."""
        place = {name: index for index, name in enumerate(order)}
        impls = [impl for impl in getattr(self.manager.hook, hook).get_hookimpls() if impl.plugin_name in place]
        return sorted(impls, key=lambda impl: place[impl.plugin_name])


def _load(name: str, available: Mapping[str, EntryPoint]) -> Any:
    if name not in available:
        near = difflib.get_close_matches(name, available, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(sorted(available)) or 'none'}"
        raise ConfigError([f"plugin {name!r} is not installed; {hint}"])
    try:
        return available[name].load()
    except Exception as error:
        raise ConfigError([f"plugin {name!r} can not be imported: {type(error).__name__}: {error}"]) from error


def _check(name: str, impl: pluggy.HookImpl) -> Iterable[str]:
    hook = impl.function.__name__
    if impl.tryfirst or impl.trylast:
        yield f"plugin {name}: {hook} asks for tryfirst/trylast; order is the operator's: use `[pipeline] order`"
    if impl.wrapper or impl.hookwrapper:
        yield f"plugin {name}: {hook} is a wrapper; wrap attempts with open_attempt, answers with tap_response"
    is_async = inspect.iscoroutinefunction(impl.function)
    if hook in ASYNC_HOOKS and not is_async:
        yield f"plugin {name}: {hook} must be `async def`"
    if hook not in ASYNC_HOOKS | EITHER and is_async:
        yield f"plugin {name}: {hook} must be a plain `def` (lifespan and open_attempt return an async context manager)"
