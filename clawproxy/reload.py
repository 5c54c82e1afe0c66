"""Hot reload: read, check and compile a whole new generation, then swap one pointer.

Rule 1: a reload that fails changes nothing. All that can fail comes before `_install`, which is synchronous and can not.
Rule 2: what a listener, a lock or a task was made of at start is not changed under it: such a reload is refused as a whole, and
        says which key it was.
Rule 3: one reload at a time; what is asked for while one runs is done after it. A file's state is noted before it is read, so
        that a change that comes while it is read is found.
Rule 4: files are read and secrets resolved in a thread: a folder that hangs hangs no request.
"""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, evolve, field, frozen

from clawproxy.config.load import Loaded, Source, load, parse, read
from clawproxy.config.locate import lines
from clawproxy.config.secretrefs import files_read
from clawproxy.dialects import provider_dialects
from clawproxy.errors import ConfigError
from clawproxy.gateway import Generation
from clawproxy.ops.logs import LOG, log_event, log_exception, set_level
from clawproxy.pipeline.plugins import installed
from clawproxy.servertls import tls_context
from clawproxy.upstream.pool import PoolStatistics
from clawproxy.upstream.providers import Providers

if TYPE_CHECKING:
    from clawproxy.config import Config, SecretRef
    from clawproxy.gateway import Gateway
    from clawproxy.pipeline import Plugins
    from clawproxy.secrets import Secret
    from clawproxy.transport.limits import ConnectionLimits

EVERY = 1.0
"""Seconds between two looks at the files."""
AGAIN = 1.0
"""Seconds until what looks after providers is begun anew, where it failed."""
SETTLE = 0.1
"""Seconds a changed file must stay as it is before it is read: most editors write in more than one step."""
_SETTLE_LOOKS = 20
_FIXED = ("listen", "admin", "workers", "state_dir")
"""Of `[server]`, what only a restart changes."""
_RESTART = "is changed, which needs a restart; nothing of this configuration is taken over before"

Seen = Mapping[Path, tuple[int, ...] | None]
"""Each file's modification time, size and inode; None where it is not there."""


def look(files: Iterable[Path]) -> Seen:
    seen: dict[Path, tuple[int, ...] | None] = {}
    for file in files:
        try:
            stat = file.expanduser().stat()
            seen[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except (OSError, RuntimeError, ValueError):
            seen[file] = None
    return seen


def needs_restart(running: Config, wanted: Config, plugins: Collection[str]) -> list[str]:
    """What differs that a running process can not change, a sentence for each key.

    Args:
        plugins: those that may be in the order.
    """
    problems = [f"server.{name}: {_RESTART}" for name in _FIXED if getattr(running.server, name) != getattr(wanted.server, name)]
    for name in ("tls", "pepper"):  # their files may change, not whether there are any
        if (getattr(running.server, name) is None) != (getattr(wanted.server, name) is None):
            problems += [f"server.{name}: {_RESTART}"]
    strangers = [name for name in wanted.pipeline.order if name not in plugins]
    if strangers:
        problems.append(f"pipeline.order: {', '.join(strangers)} did not run before; adding a plugin needs a restart")
    return problems


@frozen
class _Read:
    """What a thread brings back."""

    loaded: Loaded
    warnings: list[str]
    files: Seen
    tls: ssl.SSLContext | None


@define(eq=False)
class _Scripted:
    """A provider in this process."""

    url: str
    scope: trio.CancelScope


@define(eq=False)
class Reloader:
    """Builds the generations of one process: the first with `begin`, the others while `run` runs. `tls` is what new connections
    are served with."""

    gateway: Gateway
    plugins: Plugins
    resolve: Callable[[SecretRef], Secret]
    limits: ConnectionLimits
    nursery: trio.Nursery
    """The service's: for providers in this process and the care of the pools."""
    tls: ssl.SSLContext | None = None
    number: int = 0
    upstream: Providers | None = None
    _started: Loaded | None = None
    _files: Seen = field(factory=dict)
    _ready: Collection[str] = ()
    """The plugins that may be in the order: those whose lifespan runs, and those that have none."""
    _one: trio.Lock = field(factory=trio.Lock)
    _asked: trio.Event = field(factory=trio.Event)
    _retired: list[Generation] = field(factory=list)
    _scripted: dict[tuple[str, str | None], _Scripted] = field(factory=dict)
    _care: list[trio.CancelScope] = field(factory=list)
    """Around what looks after the current providers."""

    async def begin(self, config: Config, settings: Mapping[str, Any]) -> None:
        """The first generation. Raises ConfigError."""
        self._started = Loaded(config, [], settings)
        self._files = dict.fromkeys(files_read(config, settings))
        self._files = await self._look()
        with_lifespan = {impl.plugin_name for impl in self.plugins.implementations("lifespan", self.plugins.names)}
        self._ready = [*config.pipeline.order, *(name for name in self.plugins.names if name not in with_lifespan)]
        self._install(await self._build(config, settings))
        metrics = self.gateway.metrics
        metrics.gauge("clawproxy_config_generation", "The configuration's generation.", lambda: self.number)
        metrics.gauge(
            "clawproxy_config_reload_failed",
            "1 while the last reload was refused.",
            lambda: bool(self.gateway.reload_problems),
        )

    async def run(self) -> None:
        """Reload when asked and when a file changed, until cancelled."""
        while True:
            with trio.move_on_after(EVERY if self._files or self._retired else math.inf):
                await self._asked.wait()
            if self._asked.is_set() or await self._changed():
                asked, self._asked = self._asked.is_set(), trio.Event()
                await self.reload("signal" if asked else "file")
            self._let_go()

    def ask(self) -> None:
        """Reload soon; asked again meanwhile, once more."""
        self._asked.set()

    async def reload(self, reason: str) -> bool:
        """One reload, from reading to swapping; False where it was refused: it is logged and counted, and nothing has changed."""
        async with self._one:
            return not self.gateway.draining and await self._reload(reason)

    async def _reload(self, reason: str) -> bool:
        path = self._running.path
        problems: list[str] = []
        try:
            found = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True, limiter=_THREADS)
            generation = await self._checked(found)
        except ConfigError as error:
            problems = error.problems
        except Exception as error:  # a defect of ours or of a plugin's: as loud, and as harmless
            log_exception("config.reload_crashed", error)
            problems = [f"{path or 'environment'}: {type(error).__name__}; see `config.reload_crashed` in the log"]
        where = None if path is None else str(path)
        self.gateway.metrics.count("clawproxy_reloads_total", result="failed" if problems else "ok")
        self.gateway.reload_problems = tuple(problems)
        if problems:
            log_event("config.reload_failed", "error", path=where, problems=problems, reason=reason)
            return False
        self.tls, self._files = found.tls, found.files
        self._install(generation)
        log_event("config.reloaded", "info", path=where, reason=reason)
        for warning in found.warnings:
            log_event("config.warning", "warning", message=warning, cause=warning)
        return True

    def statistics(self) -> Mapping[str, PoolStatistics]:
        """By provider: of the current generation, with what is still at work for those it replaced."""
        assert self.upstream is not None
        total = dict(self.upstream.statistics())
        pools = set(self.upstream.pools())
        for generation in self._retired:
            assert isinstance(generation.upstream, Providers)
            for pool in generation.upstream.pools():
                if pool not in pools and pool.name in total:
                    pools.add(pool)
                    total[pool.name] = evolve(total[pool.name], active=total[pool.name].active + pool.statistics().active)
        return total

    # --- reading: in a thread ------------------------------------------------------------------------------------------------

    def _read(self) -> _Read:
        """Raises ConfigError."""
        running = self._running
        self._files = look(self._files)
        loaded = self._load(running)
        config, registry = loaded.config, self.plugins.registry
        wanted = files_read(config, loaded.settings)
        files = {**look(wanted - self._files.keys()), **self._files}
        # What a broken configuration needs is looked at too: it may come later. What is not needed any more is forgotten then.
        self._files = files
        problems, warnings = loaded.secret_problems(registry.secret_schemes)
        fixed = needs_restart(running, config, self._ready)
        pepper = config.server.pepper
        if (
            not problems
            and not fixed
            and pepper is not None
            and self.resolve(pepper).reveal().encode() != self.gateway.app.pepper
        ):
            fixed.append(f"server.pepper: {_RESTART}")
        if problems or fixed:
            raise ConfigError([*(loaded.source.located(problem) for problem in fixed), *problems])
        try:
            tls = tls_context(config.server.tls) if config.server.tls is not None else None
        except ConfigError as error:
            raise ConfigError([loaded.source.located(problem) for problem in error.problems]) from None
        return _Read(loaded, [*loaded.warnings, *warnings], {file: seen for file, seen in files.items() if file in wanted}, tls)

    def _load(self, running: Config) -> Loaded:
        path = running.path
        if path is None:
            assert self._started is not None
            return self._started
        text = read(path)
        raw = parse(text, str(path))
        if not raw:
            raise ConfigError([f"{path}:1: holds no setting; a file that was emptied, or is being written, is not taken over"])
        names, registry = installed(), self.plugins.registry
        sections = raw["plugins"] if isinstance(raw.get("plugins"), dict) else {}
        strangers = [name for name in sections if name in names and name not in self.plugins.names]
        if strangers:
            source = Source(str(path), lines(text))
            problems = [f"plugins.{name}: was not loaded at start; adding a plugin needs a restart" for name in strangers]
            raise ConfigError([source.located(problem) for problem in problems])
        return load(
            path,
            settings=registry.settings,
            known_dialects=registry.dialects,
            known_plugins={*names, *self.plugins.names},
            environ=os.environ,
        )

    # --- building and swapping -----------------------------------------------------------------------------------------------

    async def _checked(self, found: _Read) -> Generation:
        loaded = found.loaded
        try:
            return await self._build(loaded.config, loaded.settings)
        except ConfigError as error:
            raise ConfigError([loaded.source.located(problem) for problem in error.problems]) from None

    async def _build(self, config: Config, settings: Mapping[str, Any]) -> Generation:
        """Raises ConfigError. Nothing awaits between the look at the providers there are and the end."""
        config = await self._with_scripted(config)
        number = self.number + 1
        dialects = provider_dialects(self.plugins.registry.dialects)
        upstream = Providers(config, dialects, self.resolve, number, before=self.upstream)
        return Generation(number, config, self.gateway, self.plugins, settings, upstream)

    def _install(self, generation: Generation) -> None:
        config, upstream = generation.config, generation.upstream
        assert isinstance(upstream, Providers)
        before = self.gateway.install(generation)
        self.limits.configure(config.limits)
        self.number = LOG.generation = generation.number
        if before is not None:
            assert self.upstream is not None
            self.upstream.replaced_by(upstream)
            self._retired.append(before)
            if before.config.log.level != config.log.level:
                set_level(config.log.level)
        self.upstream = upstream
        for scope in self._care:
            scope.cancel()
        self._care.clear()
        checks = upstream.checks(self.gateway.app.random)
        self._look_after(upstream.run, *(partial(check.run, self.gateway.checked) for check in checks))

    def _look_after(self, *work: Callable[[], Awaitable[None]]) -> None:
        for each in work:
            scope = trio.CancelScope()
            self._care.append(scope)
            self.nursery.start_soon(_until, scope, each)

    @property
    def _running(self) -> Config:
        return self.gateway.config

    # --- providers in this process -------------------------------------------------------------------------------------------

    async def _with_scripted(self, config: Config) -> Config:
        """Providers of the `scripted` dialect without an address live in this process, behind a real socket: each for as long as
        its name and script stand in the configuration."""
        providers = dict(config.providers)
        for name, provider in providers.items():
            if provider.dialect == "scripted" and provider.base_url is None:
                known = self._scripted.get((name, provider.script))
                if known is None:
                    scope = trio.CancelScope()
                    url: str = await self.nursery.start(_serve_scripted, provider.script, scope)
                    known = self._scripted[name, provider.script] = _Scripted(url, scope)
                providers[name] = evolve(provider, base_url=known.url)
        return evolve(config, providers=providers)

    def _let_go(self) -> None:
        """Forget the generations whose last request has ended, then the providers in this process that nobody can ask."""
        self._retired = [generation for generation in self._retired if generation.in_flight]
        if self._retired:
            return
        wanted = {provider.base_url for provider in self._running.providers.values()}
        for key, scripted in tuple(self._scripted.items()):
            if scripted.url not in wanted:
                scripted.scope.cancel()
                del self._scripted[key]

    # --- watching ------------------------------------------------------------------------------------------------------------

    async def _changed(self) -> bool:
        """Whether a file is another than the one that was read, once it stays as it is, or nobody wants to wait for that."""
        now = await self._look()
        for _ in range(_SETTLE_LOOKS):
            if now == self._files:
                return False
            with trio.move_on_after(SETTLE):
                await self._asked.wait()
                return True
            before, now = now, await self._look()
            if now == before:
                break
        return now != self._files

    async def _look(self) -> Seen:
        return await trio.to_thread.run_sync(look, self._files, abandon_on_cancel=True, limiter=_THREADS)


async def _until(scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    """A defect in what looks after providers is logged and tried anew: requests need neither to end for it."""
    with scope:
        while True:
            try:
                return await work()
            except Exception as error:
                log_exception("providers.care_crashed", error)
            await trio.sleep(AGAIN)


async def _serve_scripted(  # noqa: ASYNC114
    script: str | None, scope: trio.CancelScope, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    from clawproxy.scripted import ScriptedProvider

    with scope:
        from clawproxy.scripted import ScriptedProvider

        provider = ScriptedProvider(script) if script else ScriptedProvider()
        await provider.serve("127.0.0.1", 0, task_status=task_status)


_THREADS = trio.CapacityLimiter(4)
"""Our own: what hangs here takes no thread from the ledger."""
