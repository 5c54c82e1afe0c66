"""All providers of one configuration generation: the `Upstream` the exchange is given.

Rule 1: everything that can be wrong with the configuration is found at construction and reported at once, by key path.
Rule 2: nothing reaches a provider unless a client asked, but for `min_idle` and `health`, which an operator must set.
Rule 3: a generation that is replaced is closed (`aclose`) and keeps serving the requests that began with it, without keeping
        connections.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

import trio

from clawproxy.config import Config, ProviderConfig, SecretRef
from clawproxy.dialects.base import OutboundRequest, ProviderDialect
from clawproxy.errors import ClawError, ConfigError
from clawproxy.messages import EMPTY, ChatRequest, Route
from clawproxy.secrets import Secret
from clawproxy.upstream import base
from clawproxy.upstream.answer import Opening
from clawproxy.upstream.check import Check
from clawproxy.upstream.connection import Connection
from clawproxy.upstream.dial import NOTHING_MORE
from clawproxy.upstream.dns import Resolver
from clawproxy.upstream.pool import Pool, PoolStatistics
from clawproxy.upstream.provider import MAX_PAUSE, Provider
from clawproxy.upstream.proxy import Proxy, proxy_for
from clawproxy.upstream.request import header_problem
from clawproxy.upstream.responses_ws import SocketOpening
from clawproxy.upstream.url import BaseURL, parse_base_url


class Providers:
    """Implements `upstream.base.Upstream`.

    Args:
        dialects: provider dialects by name.
        resolve_secret: gives the value of a reference; LookupError where there is none. Asked at a provider's first request,
            and again after the provider refused the credential.
        generation: the configuration's number, for `repr`.
        resolver: shared between generations, so that known names stay known.
        environ: where the proxy variables are; the process's own environment unless given.
        before: the configuration this one replaces. A provider that is the same in both is one object, with one pool.
        in_process: who serves providers that have no `base_url`, by dialect name (`scripted`).

    Raises ConfigError with every problem found.
    """

    def __init__(
        self,
        config: Config,
        dialects: Mapping[str, ProviderDialect],
        resolve_secret: Callable[[SecretRef], Secret],
        generation: int = 0,
        *,
        resolver: Resolver | None = None,
        environ: Mapping[str, str] | None = None,
        before: Providers | None = None,
        in_process: Mapping[str, base.Upstream] = EMPTY,
    ) -> None:
        self.generation = generation
        self._resolver: Resolver = resolver or (before._resolver if before is not None else Resolver())
        self._environ = os.environ if environ is None else environ
        # The system's certificates are read once; a file of the operator's may have changed, and is read again.
        self._contexts: dict[str, ssl.SSLContext] = (
            {"": before._contexts[""]} if before is not None and "" in before._contexts else {}
        )
        self._providers: dict[str, Provider] = {}
        self._in_process: dict[str, base.Upstream] = {}
        problems: list[str] = []
        for name, settings in config.providers.items():
            if settings.base_url is None and settings.dialect in in_process:
                self._in_process[name] = in_process[settings.dialect]
                continue
            found = self._check(f"providers.{name}", settings, dialects, problems)
            if found is not None:
                dialect, url, proxy, context = found
                deadlines, limit = config.deadlines.overridden(settings.deadlines), config.limits.response
                made_of = (settings, dialects[settings.dialect], proxy, context, deadlines, limit, self._resolver)
                same = None if before is None else before._providers.get(name)
                if same is not None and same.made_of == made_of:
                    self._providers[name] = same
                    continue
                self._providers[name] = made = Provider(
                    name,
                    settings,
                    dialect,
                    url,
                    proxy,
                    context,
                    resolver=self._resolver,
                    resolve_secret=resolve_secret,
                    deadlines=deadlines,
                    response_limit=limit,
                )
                made.made_of = made_of
        if problems:
            raise ConfigError(problems)

    def __repr__(self) -> str:
        pools = ", ".join(repr(provider.pool) for provider in self._providers.values())
        return f"<Providers generation {self.generation} [{pools}]>"

    def dialect(self, provider: str) -> ProviderDialect:
        """Raises ClawError("no_route") for a provider that this generation does not have."""
        found = self._providers.get(provider)
        if found is not None:
            return found.dialect
        inner = self._in_process.get(provider)
        if inner is None:
            raise ClawError("no_route")
        return inner.dialect(provider)

    def open(
        self, route: Route, request: ChatRequest, outbound: OutboundRequest, phases: base.Phases, fair_key: str
    ) -> base.Opening:
        """See `upstream.base.Upstream.open`. Phases: `queue` only where there is no place, `connect` only where a connection is
        made, `first_token` always."""
        provider = self._providers.get(route.provider)
        if provider is not None:
            if provider.sockets is not None:
                sockets = provider.sockets_for(route.credential)
                return SocketOpening(provider, sockets, request, outbound, phases, fair_key, route.credential)
            return Opening(provider, request, outbound, phases, fair_key, route.credential)
        inner = self._in_process.get(route.provider)
        if inner is None:
            raise ClawError("no_route")
        return inner.open(route, request, outbound, phases, fair_key)

    async def run(self) -> None:
        """Maintenance, for ever; the server starts it and cancels it. Old connections are closed, `min_idle` is kept warm, and
        credentials that are fetched are, for whoever waits for them.
        """
        async with trio.open_nursery() as nursery:
            for provider in self._providers.values():
                for renewal in provider.renewals.values():
                    nursery.start_soon(renewal.run)
            await self._keep_pools()

    async def _keep_pools(self) -> None:
        """It is only hygiene: a connection that is too old is never taken, swept or not."""
        pause = min((provider.pause for provider in self._providers.values()), default=MAX_PAUSE)
        while True:
            for provider in self._providers.values():
                provider.sweep()
            for provider in self._providers.values():
                await provider.warm_up()
            await trio.sleep(pause)

    def checks(self, random: Random) -> Sequence[Check]:
        """Of the providers that are to be checked."""
        return [Check(each, each.health, random) for each in self._providers.values() if each.health is not None]

    def pools(self) -> Iterable[Pool[Connection]]:
        return [provider.pool for provider in self._providers.values()]

    def statistics(self) -> Mapping[str, PoolStatistics]:
        """By provider."""
        return {name: provider.statistics() for name, provider in self._providers.items()}

    def replaced_by(self, successor: Providers) -> None:
        """The successor serves new requests from now on: pools that it did not take over keep nothing more, and credentials are
        read again where they are kept."""
        for name, provider in self._providers.items():
            if successor._providers.get(name) is not provider:
                provider.close()
            provider.reread_credentials()

    async def aclose(self) -> None:
        """Close the idle connections now, and those at work when their answers end."""
        for provider in self._providers.values():
            provider.close()
        await trio.lowlevel.checkpoint()

    # --- checking the configuration --------------------------------------------------------------------------------------

    def _check(
        self, path: str, settings: ProviderConfig, dialects: Mapping[str, ProviderDialect], problems: list[str]
    ) -> tuple[ProviderDialect, BaseURL, Proxy | None, ssl.SSLContext | None] | None:
        before = len(problems)
        dialect = self._dialect(path, settings, dialects, problems)
        if dialect is not None and settings.credentials and any(name.lower() == dialect.auth_header for name in settings.headers):
            problems.append(f"{path}.headers: `{dialect.auth_header}` is set from api_key; remove one of the two.")
        for name, value in settings.headers.items():
            problem = header_problem(name, value)
            if problem is not None:
                problems.append(f"{path}.headers: {name!r}: {problem}.")
        if settings.pool.max < 1 or not 0 <= settings.pool.min_idle <= settings.pool.max:
            problems.append(f"{path}.pool: max must be at least 1, and min_idle between 0 and max.")
        if (settings.oauth or any(ref.scheme in ("vault", "aws") for ref in settings.credentials)) and not _can_fetch():
            problems.append(f"{path}: its credentials need the package httpcore2; run `pip install clawproxy[control]`.")
        url = self._url(path, settings, problems)
        proxy = context = None
        if url is not None:
            try:
                proxy = proxy_for(url, self._environ)
            except ValueError as error:
                problems.append(f"{path}.base_url: its proxy can not be used: {error}.")
            if url.scheme == "https":
                context = self._context(path, settings, problems)
        return (dialect, url, proxy, context) if dialect and url and len(problems) == before else None

    def _dialect(
        self, path: str, settings: ProviderConfig, dialects: Mapping[str, ProviderDialect], problems: list[str]
    ) -> ProviderDialect | None:
        dialect = dialects.get(settings.dialect)
        if dialect is None:
            known = ", ".join(sorted(dialects))
            problems.append(f"{path}.dialect: `{settings.dialect}` is not a dialect this gateway knows ({known}).")
            return None
        try:
            return dialect.configured(settings)
        except ConfigError as error:
            problems += [f"{path}.{problem}" for problem in error.problems]
            return None

    def _url(self, path: str, settings: ProviderConfig, problems: list[str]) -> BaseURL | None:
        if settings.base_url is None:
            problems.append(f"{path}.base_url: it is missing; write https://HOST[:PORT]/PREFIX.")
            return None
        try:
            return parse_base_url(settings.base_url)
        except ValueError as error:
            problems.append(f"{path}.base_url: {error}.")
            return None

    def _context(self, path: str, settings: ProviderConfig, problems: list[str]) -> ssl.SSLContext | None:
        """One context for each set of trusted certificates and certificate of our own: loading the system's takes tens of
        milliseconds."""
        tls = settings.tls or NOTHING_MORE
        key = " ".join(str(file) for file in (settings.ca_file, tls.certificate, tls.key) if file is not None)
        context = self._contexts.get(key)
        if context is None:
            try:
                # Verification and host name checks are on, and no setting turns them off.
                context = ssl.create_default_context(cafile=settings.ca_file)
            except OSError as error:  # ssl.SSLError, where it holds no certificate, is one
                reason = "it holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror or "unreadable"
                problems.append(f"{path}.ca_file: {reason}.")
                return None
            try:
                if tls.certificate is not None:
                    context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
            except OSError as error:
                why = getattr(error, "reason", None) or "not PEM, encrypted, or not to be read"
                problems.append(f"{path}.tls: certificate and key can not be used together: {why}.")
                return None
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
            context.set_alpn_protocols(["http/1.1"])
            self._contexts[key] = context
        return context


def _can_fetch() -> bool:
    return importlib.util.find_spec("httpcore2") is not None
