"""Whether credentials in use are still good, asked now and then, so that the end of one reaches open connections and running
requests too (W-33, A-12).

Rule 1: each credential is asked for once a round, however many connections have it, and through the gateway's own cache of
        verdicts: its end is noticed within `CREDENTIAL_CACHE` + `EVERY`. These are 4 s, and 5 are promised.
Rule 2: only a plain no ends anything. Where nobody can be asked (a store that fails, an issuer that is away) what was let in
        stays until somebody can.
Rule 3: a defect is one more thing that can not be known: it ends neither the service nor the round for the others. It is logged
        when it comes, not each second while it stays.
"""

from __future__ import annotations

import trio

from clawproxy.errors import ClawError
from clawproxy.gateway import Gateway
from clawproxy.messages import Credentials, Principal
from clawproxy.ops.logs import log_exception
from clawproxy.transport.websocket import Connections

EVERY = 1.0
"""Seconds between two rounds."""
_NO = frozenset({"auth.missing", "auth.invalid", "auth.expired", "auth.throttled"})
_AT_ONCE = 50
"""Connections, or requests, looked at before others have their turn: 0.5 ms."""
_Verdict = Principal | None | ClawError
"""Whose a credential is; None where it is no good any more; an error where that can not be known (Rule 2, Rule 3)."""


class Rechecks:
    """Make one for each process; `run` is a task of the service nursery."""

    def __init__(self, gateway: Gateway, websockets: Connections) -> None:
        self._gateway = gateway
        self._websockets = websockets
        self._failed = False
        """Whether this round had a defect."""
        self._said = False

    async def run(self) -> None:
        while True:
            await trio.sleep(EVERY)
            self._failed = False
            try:
                await self.round()
            except Exception as error:
                self._defect(error)
            self._said = self._failed

    def _defect(self, error: Exception) -> None:
        if not self._said:
            log_exception("recheck.crashed", error)
        self._failed = self._said = True

    async def round(self) -> None:
        """Ask for every credential in use, once."""
        known: dict[Credentials, _Verdict] = {}
        for number, session in enumerate(tuple(self._websockets)):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            credentials = session.credentials
            if credentials is not None and not session.barred:
                verdict = await self._verdict(credentials, known)
                try:
                    self._websockets.judged(session, credentials, verdict)
                except Exception as error:  # that connection's: the others are still to be told
                    self._defect(error)
        if self._gateway.config.server.on_revoke == "cut":
            await self._cut_requests(known)

    async def _cut_requests(self, known: dict[Credentials, _Verdict]) -> None:
        """Requests over HTTP: nothing but their own answer belongs to them."""
        for number, call in enumerate(tuple(self._gateway.calls)):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            credentials = call.credentials
            if credentials is not None and await self._verdict(credentials, known) is None:
                call.lifetime.cancel(ClawError("auth.expired"))

    async def _verdict(self, credentials: Credentials, known: dict[Credentials, _Verdict]) -> _Verdict:
        if credentials not in known:
            try:
                known[credentials] = await self._gateway.authenticate(credentials)
            except ClawError as error:
                known[credentials] = None if error.slug in _NO else error
            except Exception as error:
                self._defect(error)
                known[credentials] = ClawError("internal")
        return known[credentials]
