"""Whether credentials in use are still good, asked now and then, so that the end of one reaches open connections and running
requests too (W-33, A-12).

Rule 1: each credential is asked for once a round, however many connections have it, and through the gateway's own cache of
        verdicts: its end is noticed within `CREDENTIAL_CACHE` + `EVERY`. These are 4 s, and 5 are promised.
Rule 2: only a plain no ends anything. Where nobody can be asked (a store that fails, an issuer that is away) what was let in
        stays until somebody can.
"""

from __future__ import annotations

import trio

from clawproxy.config import Config
from clawproxy.errors import ClawError
from clawproxy.gateway import Gateway
from clawproxy.messages import Credentials, Principal
from clawproxy.transport.websocket import Connections

EVERY = 1.0
"""Seconds between two rounds."""
_NO = frozenset({"auth.missing", "auth.invalid", "auth.expired", "auth.throttled"})
_AT_ONCE = 50
"""Credentials looked at before others have their turn."""


class Rechecks:
    """Make one for each process; `run` is a task of the service nursery."""

    def __init__(self, gateway: Gateway, websockets: Connections) -> None:
        self._gateway = gateway
        self._websockets = websockets

    async def run(self) -> None:
        while True:
            await trio.sleep(EVERY)
            await self.round()

    async def round(self) -> None:
        """Ask for every credential in use, once."""
        config: Config = self._gateway.config
        looked: dict[Credentials, Principal | None] = {}
        for number, (credentials, sessions) in enumerate(self._websockets.credentials().items()):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            try:
                looked[credentials] = principal = await self._still_good(credentials)
            except ClawError:
                continue
            self._websockets.judged(credentials, sessions, principal)
        if config.server.on_revoke == "cut":
            await self._cut_requests(looked)

    async def _cut_requests(self, looked: dict[Credentials, Principal | None]) -> None:
        """Requests over HTTP: nothing but their own answer belongs to them."""
        for call in tuple(self._gateway.calls):
            credentials = call.credentials
            if credentials is None:
                continue
            try:
                if credentials not in looked:
                    looked[credentials] = await self._still_good(credentials)
            except ClawError:
                continue
            if looked[credentials] is None:
                call.lifetime.cancel(ClawError("auth.expired"))

    async def _still_good(self, credentials: Credentials) -> Principal | None:
        """Whose it is; None where it is no good any more. Raises ClawError where that can not be known."""
        try:
            return await self._gateway.authenticate(credentials)
        except ClawError as error:
            if error.slug in _NO:
                return None
            raise
