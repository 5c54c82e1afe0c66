"""One configured provider: its dialect, pool, credential, and the way to it."""

from __future__ import annotations

import functools
import logging
import math
import re
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import ProviderConfig, SecretRef
from clawproxy.dialects.base import OutboundRequest, ProviderDialect
from clawproxy.errors import ClawError, ConfigError, ProviderFault
from clawproxy.secrets import Secret
from clawproxy.upstream.base import Phases
from clawproxy.upstream.connection import Connection
from clawproxy.upstream.dial import NOTHING_MORE, Dialer
from clawproxy.upstream.dns import Resolver
from clawproxy.upstream.faults import fault
from clawproxy.upstream.fetched import obtaining
from clawproxy.upstream.oauth import OAuth
from clawproxy.upstream.pool import Pool, PoolStatistics
from clawproxy.upstream.proxy import Proxy
from clawproxy.upstream.renewal import Renewal, Unobtainable
from clawproxy.upstream.request import RequestEncoder
from clawproxy.upstream.responses_ws import Sockets
from clawproxy.upstream.url import BaseURL

if TYPE_CHECKING:
    from clawproxy.upstream.base import Phases

logger = logging.getLogger("clawproxy.upstream")

MAX_PAUSE = 5.0

_KEY = re.compile(r"[\x21-\x7e]+")


class Provider:
    """Made by `Providers`, which has checked everything that is in the configuration."""

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        dialect: ProviderDialect,
        url: BaseURL,
        proxy: Proxy | None,
        context: ssl.SSLContext | None,
        *,
        resolver: Resolver,
        resolve_secret: Callable[[SecretRef], Secret],
        deadlines: Deadlines,
        response_limit: int,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.url = url
        self.made_of: tuple[object, ...] = ()
        """All that it depends on, for a reload to compare."""
        self.pool: Pool[Connection] = Pool(name, config.pool)
        self.health = config.health
        self._settings = config.pool
        self._references = config.credentials
        self.credentials: list[Secret | None] = [None] * max(1, len(config.credentials))
        """Those that are at hand, by their place."""
        self._resolve_secret = resolve_secret
        self._connect_limit = deadlines.connect
        self._response_limit = response_limit
        self._dialer = Dialer(name, url, proxy, context, resolver, config.tls or NOTHING_MORE)
        self.sockets = Sockets(name, config.pool, self._dialer, response_limit, deadlines.connect) if config.websocket else None
        self._sockets = [] if self.sockets is None else [self.sockets, *(self.sockets.another() for _ in self.credentials[1:])]
        self.renewals = self._renewals(config)
        """Of those that are fetched, by their place."""
        self._encoder = RequestEncoder(url, config.headers, dialect.auth_header, proxy if context is None else None)

    def __repr__(self) -> str:
        return f"<Provider {self.name} {self.url.scheme}://{self.url.address} {self.pool!r}>"

    def encode(self, outbound: OutboundRequest, credential: int = 0) -> bytes:
        """`credential`: which of them, as `Route.credential` counts. Raises ProviderFault("provider_error.auth") where it can not
        be read, ClawError("no_route") where there is none; see `RequestEncoder.encode` for the path."""
        if not 0 <= credential < len(self.credentials):
            raise ClawError("no_route")
        secret = self.credentials[credential]
        return self._encoder.encode(outbound, secret if secret is not None else self._key(credential))

    def sockets_for(self, credential: int) -> Sockets:
        """The WebSockets that were opened with this credential: one that was opened with another is somebody else's. Raises
        ClawError("no_route")."""
        if not 0 <= credential < len(self._sockets):
            raise ClawError("no_route")
        return self._sockets[credential]

    async def connect(self, phases: Phases | None = None) -> Connection:
        """A new connection, for the holder of a place."""
        connection = await self.dial(phases)
        self.pool.opened_total += 1
        return connection

    async def dial(self, phases: Phases | None = None) -> Connection:
        """A new connection that the pool does not know of."""
        return Connection(self.name, await self._dialer.connect(phases), self._response_limit)

    def sweep(self) -> None:
        self.pool.sweep()
        for sockets in self._sockets:
            sockets.pool.sweep()

    def close(self) -> None:
        self.pool.close()
        for sockets in self._sockets:
            sockets.pool.close()

    def statistics(self) -> PoolStatistics:
        """Of its connections, sockets included."""
        figures = self.pool.statistics()
        for sockets in self._sockets:
            figures = figures.plus(sockets.pool.statistics())
        return figures

    def put_back(self, connection: Connection, finished: bool = False) -> None:
        """The place, and the connection with it where its answer ended cleanly; else it is closed now. `finished`: see
        `Connection.reusable`."""
        if connection.reusable(finished):
            self.pool.release(connection, last=connection.owes_end)
        else:
            connection.close()
            self.pool.release()

    # --- credentials -----------------------------------------------------------------------------------------------------------

    async def obtain(self, credential: int, phases: Phases) -> None:
        """Wait for a credential that is fetched, on the `connect` clock. Raises ProviderFault("provider_error.auth")."""
        renewal = self.renewals.get(credential)
        if renewal is not None and renewal.secret is None:
            phases.enter("connect")
            try:
                await renewal.another(None)
            except Unobtainable:
                raise fault("auth", self.name, "its credential can not be had", sent=False) from None

    async def another(self, credential: int, refused: Secret | None, phases: Phases) -> bool:
        """The provider refused this one. Whether there is another in its place now: read again where it is kept, or renewed."""
        renewal = self.renewals.get(credential)
        if renewal is not None:
            if not renewal.refused(refused):
                return False
            phases.enter("connect")
            try:
                await renewal.another(refused)
            except Unobtainable:
                return False
            return True
        if self.credentials[credential] is refused:
            self.credentials[credential] = None
            try:
                self._key(credential)
            except ProviderFault:
                return False
        return self.credentials[credential] not in (None, refused)

    def reread_credentials(self) -> None:
        """The configuration was read anew: so are they, each when it is needed next. What is fetched stays until then."""
        for credential in range(len(self.credentials)):
            renewal = self.renewals.get(credential)
            if renewal is None:
                self.credentials[credential] = None
            else:
                renewal.ask()

    def _renewals(self, config: ProviderConfig) -> dict[int, Renewal]:
        made: dict[int, Renewal] = {}
        for index, ref in enumerate(config.credentials):
            obtain = obtaining(ref) if config.oauth is None else OAuth(config.oauth, self._resolve_secret)
            if obtain is not None:
                name = f"providers.{self.name} credential {index}" if config.oauth is None else f"providers.{self.name}.oauth"
                every = math.inf if config.refresh is None else config.refresh
                give = functools.partial(self.credentials.__setitem__, index)
                made[index] = Renewal(name, obtain, self._uses, give, every=every)
        return made

    def _uses(self) -> int:
        figures = self.statistics()
        return figures.opened_total + figures.reused_total

    def _key(self, credential: int) -> Secret | None:
        if not self._references:
            return None
        secret = None
        try:
            secret = self._resolve_secret(self._references[credential])
        except (LookupError, OSError, ValueError, ConfigError) as error:
            logger.error("providers.%s.api_key can not be read: %s (credential %d)", self.name, type(error).__name__, credential)
        if secret is None:  # raised out here, so that the cause, whatever it quotes, is no one's context
            raise fault("auth", self.name, "its api_key can not be read", sent=False)
        if not _KEY.fullmatch(secret.reveal()):
            raise fault("auth", self.name, "its api_key is empty or holds characters no header may carry", sent=False)
        self.credentials[credential] = secret
        return secret

    # --- maintenance -----------------------------------------------------------------------------------------------------------

    @property
    def pause(self) -> float:
        """Seconds between two rounds of maintenance."""
        return max(0.05, min(self._settings.idle / 4, self._settings.lifetime / 4, MAX_PAUSE))

    async def warm_up(self) -> None:
        """Open connections until `min_idle` are there, or one can not be had within the `connect` clock."""
        while self.pool.statistics().idle < self._settings.min_idle and self.pool.reserve():
            connection: Connection | None = None
            try:
                with trio.move_on_after(self._connect_limit):
                    connection = await self.connect()
            except ClawError as error:
                logger.warning("warm-up: %s", error)
            finally:
                self.pool.release(connection)
            if connection is None:
                return
