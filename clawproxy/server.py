"""The process: listeners, a task per connection, the service nursery, draining.

Rule 1: nurseries are opened here, in a connection that speaks WebSocket, and nowhere else on the request path.
Rule 2: what goes wrong in one connection ends that connection, is logged once, and never the server.
Rule 3: what starts is stopped in reverse: calls, connections, listeners, lifespans, providers, store.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from clawproxy.config import Config
from clawproxy.config.locate import dotted
from clawproxy.config.secretrefs import check_secrets, resolve_secret
from clawproxy.config.sections import settings_of
from clawproxy.context import App
from clawproxy.dialects import CLIENT, PATTERNS, PREFIXES, SPEAKERS, Spoken, is_served
from clawproxy.errors import ClawError, ConfigError
from clawproxy.gateway import Gateway
from clawproxy.http1.head import Head
from clawproxy.keys import load_or_create_pepper
from clawproxy.listeners import Bound, bind_all
from clawproxy.ops import admin_keys
from clawproxy.ops.admin import AdminPages
from clawproxy.ops.admin_keys import AdminKeys
from clawproxy.ops.adminapi import AdminApi
from clawproxy.ops.logs import LOG, log_event, log_exception
from clawproxy.ops.metrics import Metrics, add_process
from clawproxy.pipeline import Plugins
from clawproxy.pipeline.compile import lifespans
from clawproxy.recheck import Rechecks
from clawproxy.reload import Reloader
from clawproxy.servertls import tls_context
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.sqlite import SqliteStore
from clawproxy.transport.access import check_content, read_credentials
from clawproxy.transport.catalog import catalog_pages
from clawproxy.transport.connection import serve_connection
from clawproxy.transport.front import Front
from clawproxy.transport.http import PlainResponse
from clawproxy.transport.limits import ConnectionLimits, ReserveDescriptor
from clawproxy.transport.origins import check_admin
from clawproxy.transport.surfaces import Surfaces
from clawproxy.transport.websocket import Connections, serve_websocket

if TYPE_CHECKING:
    from clawproxy.config import SecretRef
    from clawproxy.secrets import Secret
    from clawproxy.stores.base import Store

LAST_WORDS = 2.0
"""Seconds that calls have to say goodbye once draining is over, or at a second SIGTERM."""


@frozen
class Listening:
    """What `serve` tells the world once every listener is up."""

    listen: list[str]
    admin: str | None
    pid: int


async def run(
    config: Config,
    *,
    ready: Callable[[Listening], None] = lambda _: None,
    ephemeral: bool = False,
    plugins: Mapping[str, object] | None = None,
    signals: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        ready: called once every listener is up.
        ephemeral: keep nothing on disk.
        plugins: plugin objects by name, for embedding and tests; the order must hold their names.
        signals: take SIGTERM and SIGINT, and SIGHUP to reload; without, cancelling `run` ends it at once.

    Raises:
        ConfigError: nothing was started; every problem at once as far as they can be known together.
    """
    server = Server(config, ephemeral=ephemeral, plugins=plugins or {})
    await server.run(ready, signals=signals)


class Server:
    """One process. `gateway` and `drain()` are there once it listens."""

    def __init__(self, config: Config, *, ephemeral: bool, plugins: Mapping[str, object]) -> None:
        self.config = config
        self.ephemeral = ephemeral
        self.instance = f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        # Those with a section only, too: a reload may put them into the order.
        self.plugins = Plugins([*config.pipeline.order, *config.plugins], plugins)
        self.settings = settings_of(config, self.plugins.registry.settings)
        problems, _ = check_secrets(config, self.plugins.registry.secret_schemes)
        if problems:
            raise ConfigError([f"{dotted(path)}: {sentence}" for path, sentence in problems])
        self.front = Front()
        self.websockets = Connections()
        self.limits = ConnectionLimits(config.limits)
        self.metrics = Metrics()
        self.drained = trio.Event()
        self.hurried = False

    # --- from nothing to listening ---

    async def run(self, ready: Callable[[Listening], None], *, signals: bool) -> None:
        bound, admin = await bind_all(self.config.server)
        try:
            tls = tls_context(self.config.server.tls) if self.config.server.tls else None
            store, state_dir = self._open_store()
            async with AsyncExitStack() as stack:
                stack.push_async_callback(_close_bounded, store.aclose)
                await self._serve(stack, bound, admin, tls, store, state_dir, ready, signals=signals)
            log_event("server.stopped", "info")  # plugins had their last words
        finally:
            for each in [*bound, *([admin] if admin else [])]:
                each.close()
            self.front.close()

    def _open_store(self) -> tuple[Store, Path | None]:
        if self.ephemeral:
            return MemoryStore(), None
        state_dir = self.config.server.state_dir.expanduser()
        return SqliteStore.open(state_dir, self.instance), state_dir

    async def _serve(
        self,
        stack: AsyncExitStack,
        bound: list[Bound],
        admin: Bound | None,
        tls: ssl.SSLContext | None,
        store: Store,
        state_dir: Path | None,
        ready: Callable[[Listening], None],
        *,
        signals: bool,
    ) -> None:
        LOG.instance, LOG.generation = self.instance, 1
        app = App(self.config, store, self.instance, state_dir)
        app.resolve_secret = self._resolve
        app.pepper = self._pepper(state_dir)
        self.gateway = gateway = Gateway(app, self.metrics)
        async with trio.open_nursery() as service:
            app.nursery = service
            self.reloader = reloader = Reloader(gateway, self.plugins, self._resolve, self.limits, service, tls)
            await reloader.begin(self.config, self.settings)
            # whichever way the service ends: what is idle then belongs to nobody
            stack.push_async_callback(_close_bounded, lambda: gateway.current.upstream.aclose())
            for _, manager in lifespans(self.plugins, self.config.pipeline.order, app):
                await stack.enter_async_context(manager)
            self._watch(reloader)
            alerts, rechecks = gateway.alerts, Rechecks(gateway, self.websockets)
            budgets = app.shared.get("budgets")  # the meter's, where it runs
            if budgets is not None:
                budgets.watchers.append(alerts.budget)
            for background in (self.front.run, reloader.run, gateway.lag.watch, gateway.alarms.run, LOG.run, rechecks.run):
                service.start_soon(background)
            for background in (alerts.write, alerts.send, alerts.watch):
                service.start_soon(background)
            if isinstance(store, SqliteStore):
                service.start_soon(store.run)
            async with trio.open_nursery() as connections:
                surfaces = Surfaces(
                    http=Spoken(),
                    http_patterns=[(pattern, partial(CLIENT.__getitem__, name)) for pattern, name in PATTERNS],
                    plain=catalog_pages(gateway, is_served),
                    speakers=[(knows, partial(CLIENT.__getitem__, name)) for knows, name in SPEAKERS],
                    http_prefixes={prefix: partial(CLIENT.__getitem__, name) for prefix, name in PREFIXES.items()},
                    websocket=partial(serve_websocket, connections=self.websockets, secure=tls is not None),
                    websockets=dict.fromkeys(
                        ("/v1/responses", "/openai/v1/responses"),
                        partial(_serve_responses, connections=self.websockets, secure=tls is not None),
                    ),
                )
                for each in bound:
                    connections.start_soon(self._accept, each, surfaces, connections)
                if admin is not None:
                    connections.start_soon(self._accept, admin, _admin(gateway), connections, False)
                if signals:
                    await service.start(self._take_signals)
                service.start_soon(self._drain_when_asked, connections.cancel_scope)
                listening = Listening([each.url for each in bound], admin.url if admin else None, os.getpid())
                log_event("server.listening", "info", listen=listening.listen, admin=listening.admin)
                ready(listening)
            service.cancel_scope.cancel()

    def _resolve(self, ref: SecretRef) -> Secret:
        try:
            return resolve_secret(ref, self.plugins.registry.secret_schemes)
        except ConfigError as error:
            raise LookupError(error.problems[0]) from None

    def _pepper(self, state_dir: Path | None) -> bytes:
        if self.config.server.pepper is not None:
            return self._resolve(self.config.server.pepper).reveal().encode()
        return load_or_create_pepper(state_dir) if state_dir is not None else secrets.token_bytes(32)

    # --- connections ---

    async def _accept(self, bound: Bound, surfaces: Surfaces, nursery: trio.Nursery, public: bool = True) -> None:
        listener = bound.listener
        reserve = ReserveDescriptor()
        try:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                        raise
                    reserve.refuse(listener.socket)
                    log_event("server.out_of_descriptors", "error")
                    await trio.sleep(0.02)
                    continue
                nursery.start_soon(self._connection, stream, self.reloader.tls if public else None, surfaces)
        finally:
            reserve.close()

    async def _connection(self, tcp: trio.SocketStream, tls: ssl.SSLContext | None, surfaces: Surfaces) -> None:
        accepted_at = trio.current_time()
        peer = "unix"
        try:
            peer = _address(tcp)
            refused = self.limits.admit(peer)
            if refused is not None:
                tcp.socket.close()
                return
            try:
                stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = tcp
                if tls is not None:
                    stream = trio.SSLStream(tcp, tls, server_side=True, https_compatible=True)
                await serve_connection(
                    stream, self.gateway, surfaces, self.front, peer, secure=tls is not None, accepted_at=accepted_at
                )
            finally:
                self.limits.release(peer)
        except Exception as error:  # a defect: this connection ends, the others do not notice
            log_exception("connection.crashed", error, peer=peer)
        finally:
            tcp.socket.close()

    # --- watching ---

    def _watch(self, reloader: Reloader) -> None:
        metrics = self.metrics
        add_process(metrics)
        metrics.gauge("clawproxy_connections", "Clients' connections open now.", lambda: self.limits.open)
        metrics.gauge("clawproxy_websockets", "Of them, WebSockets.", lambda: len(self.websockets))
        metrics.gauge("clawproxy_in_flight", "Requests at work.", lambda: self.gateway.in_flight)
        metrics.gauge("clawproxy_loop_lag_seconds", "How late the event loop is.", lambda: self.gateway.lag.seconds)

        def pools() -> dict[tuple[str, ...], float]:
            return {
                (name, state): getattr(pool, state)
                for name, pool in reloader.statistics().items()
                for state in ("active", "idle", "waiting", "max")
            }

        def opened() -> dict[tuple[str, ...], float]:
            return {
                (name, "reused" if reused else "opened"): pool.reused_total if reused else pool.opened_total
                for name, pool in reloader.statistics().items()
                for reused in (False, True)
            }

        metrics.gauge("clawproxy_provider_up", "0: a provider that is checked is down.", self.gateway.checks.up, ("provider",))
        metrics.gauge("clawproxy_provider_connections", "Connections to providers.", pools, ("provider", "state"))
        metrics.gauge("clawproxy_provider_uses_total", "Connections taken.", opened, ("provider", "how"), kind="counter")

    # --- the end ---

    async def _take_signals(  # noqa: ASYNC114
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *([hang_up] if hang_up else [])) as received:
            task_status.started()  # before anybody is told that it listens: a SIGHUP that is not waited for kills
            async for number in received:
                if number == hang_up:
                    self.reloader.ask()
                    continue
                if self.gateway.draining:
                    self.hurry()
                log_event("server.signal", "info", signal=signal.Signals(number).name)
                self.drain()

    def hurry(self) -> None:
        """Do not wait for running answers any longer."""
        self.hurried = True
        self.gateway.wake()

    def drain(self) -> None:
        """Stop: readiness fails at once, running answers have until `drain`, then the process ends."""
        self.gateway.draining = True
        self.drained.set()

    async def _drain_when_asked(self, connections: trio.CancelScope) -> None:
        await self.drained.wait()
        limit = self.gateway.deadlines.drain
        log_event("server.draining", "info", in_flight=self.gateway.in_flight, limit_ms=round(limit * 1000))
        self.websockets.going_away(limit)
        self.front.drain()
        with trio.move_on_after(limit):
            await self.gateway.wait_idle(or_when=lambda: self.hurried)
            while (self.front.at_work or self.gateway.calls) and not self.hurried:  # noqa: ASYNC110  # bodies still to come
                await trio.sleep(0.01)
        self.gateway.cut_off(ClawError("shutting_down", retry_after_ms=1000))
        with trio.move_on_after(LAST_WORDS):
            await self.gateway.wait_idle()
        self.websockets.close(ClawError("shutting_down"))
        with trio.move_on_after(0.2):
            while len(self.websockets):  # noqa: ASYNC110  # a moment for the closing handshakes, not worth an event
                await trio.sleep(0.01)
        connections.cancel()


def _admin(gateway: Gateway) -> Surfaces:
    """The admin listener's surfaces: its pages, behind its own Host policy, and nothing else."""
    refused = partial(gateway.count, "clawproxy_auth_failures_total", slug="auth.invalid")
    pages, keys = AdminPages(gateway, api=AdminApi(gateway.app, refused)), AdminKeys(gateway)

    async def page(head: Head, body: bytes, peer: str) -> PlainResponse:
        if admin_keys.serves(head.path):
            if body:
                check_content(head)
            answer = await keys.handle(head.method, head.path, read_credentials(head, peer, "admin"), body)
        else:
            authorization = head.all("authorization")
            shown = authorization[0] if len(authorization) == 1 else None
            answer = await pages.handle(head.method, head.path, head.query, shown)
        return PlainResponse(answer.status, answer.content_type, answer.body, answer.headers)

    def check(head: Head, config: Config, secure: bool) -> ClawError | None:
        if head.path.startswith("/admin/"):  # what changes something is for no page of somebody else's
            return check_admin(head, config, secure)
        return None if AdminPages(gateway, config.server.hosts).admits(head.get("host")) else ClawError("misdirected")

    return Surfaces(fallback=page, models=False, check=check, plain_body=admin_keys.MOST_BODY)


async def _serve_responses(*args: Any, **options: Any) -> None:
    """Imported when the first client comes: most gateways have none, and it takes 40 ms."""
    from clawproxy.transport.responses_ws import serve_responses

    await serve_responses(*args, **options)


async def _close_bounded(close: Callable[[], Awaitable[object]]) -> None:
    with trio.move_on_after(10, shield=True):
        await close()


def _address(stream: trio.SocketStream) -> str:
    if stream.socket.family == socket.AF_UNIX:
        return "unix"
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "gone"
