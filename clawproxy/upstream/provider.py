"""One configured provider: its dialect, pool, credential, and the way to it."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import ProviderConfig, SecretRef
from clawproxy.dialects.base import OutboundRequest, ProviderDialect
from clawproxy.errors import ClawError, ConfigError
from clawproxy.secrets import Secret
from clawproxy.upstream.connection import Connection
from clawproxy.upstream.dial import Dialer
from clawproxy.upstream.dns import Resolver
from clawproxy.upstream.faults import fault
from clawproxy.upstream.pool import Pool, PoolStatistics
from clawproxy.upstream.proxy import Proxy
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
        self._settings = config.pool
        self._api_key = config.api_key
        self._credential: Secret | None = None
        self._resolve_secret = resolve_secret
        self._connect_limit = deadlines.connect
        self._response_limit = response_limit
        self._dialer = Dialer(name, url, proxy, context, resolver)
        self.sockets = Sockets(name, config.pool, self._dialer, response_limit, deadlines.connect) if config.websocket else None
        self._encoder = RequestEncoder(url, config.headers, dialect.auth_header, proxy if context is None else None)

    def __repr__(self) -> str:
        return f"<Provider {self.name} {self.url.scheme}://{self.url.address} {self.pool!r}>"

    def encode(self, outbound: OutboundRequest) -> bytes:
        """Raises ProviderFault("provider_error.auth") where the key can not be read; see `RequestEncoder.encode` for the path."""
        credential = self._credential
        return self._encoder.encode(outbound, credential if credential is not None else self._key())

    async def connect(self, phases: Phases | None = None) -> Connection:
        """A new connection, for the holder of a place."""
        connection = Connection(self.name, await self._dialer.connect(phases), self._response_limit)
        self.pool.opened_total += 1
        return connection

    def sweep(self) -> None:
        self.pool.sweep()
        if self.sockets is not None:
            self.sockets.pool.sweep()

    def close(self) -> None:
        self.pool.close()
        if self.sockets is not None:
            self.sockets.pool.close()

    def statistics(self) -> PoolStatistics:
        """Of its connections, sockets included."""
        figures = self.pool.statistics()
        return figures if self.sockets is None else figures.plus(self.sockets.pool.statistics())

    def put_back(self, connection: Connection, finished: bool = False) -> None:
        """The place, and the connection with it where its answer ended cleanly; else it is closed now. `finished`: see
        `Connection.reusable`."""
        if connection.reusable(finished):
            self.pool.release(connection, last=connection.owes_end)
        else:
            connection.close()
            self.pool.release()

    def forget_credential(self) -> None:
        """The provider refused it. It may have been replaced where it is kept: read it again next time."""
        self._credential = None

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

    def _key(self) -> Secret | None:
        if self._api_key is None:
            return None
        if self._credential is None:
            secret = None
            try:
                secret = self._resolve_secret(self._api_key)
            except (LookupError, OSError, ValueError, ConfigError) as error:
                logger.error("providers.%s.api_key can not be read: %s", self.name, type(error).__name__)
            if secret is None:  # raised out here, so that the cause, whatever it quotes, is no one's context
                raise fault("auth", self.name, "its api_key can not be read", sent=False)
            if not _KEY.fullmatch(secret.reveal()):
                raise fault("auth", self.name, "its api_key is empty or holds characters no header may carry", sent=False)
            self._credential = secret
        return self._credential
