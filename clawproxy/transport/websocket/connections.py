"""All open WebSockets of a process, for whoever has to reach them: the operator who drains, the auth that revokes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clawproxy.errors import ClawError
from clawproxy.messages import Credentials, Principal
from clawproxy.transport.websocket.revoking import expel, renew

if TYPE_CHECKING:
    from clawproxy.transport.websocket.session import Session


class Connections:
    """Pass one to `serve_websocket`. Every method is synchronous and returns at once."""

    def __init__(self) -> None:
        self._open: set[Session] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, session: Session) -> None:
        self._open.add(session)

    def discard(self, session: Session) -> None:
        self._open.discard(session)

    def going_away(self, deadline: float) -> None:
        """Tell every client that the server stops in `deadline` seconds; what runs goes on."""
        for session in tuple(self._open):
            session.going_away(deadline)

    def close(self, cause: ClawError | None = None) -> None:
        """End every connection with an error frame and its close code (default: `shutting_down`, 1012)."""
        for session in tuple(self._open):
            session.refuse(cause or ClawError("shutting_down"))

    def revoke(self, key: str) -> int:
        """Expel every connection of this key (W-33); how many there were."""
        hit = [session for session in self._open if session.principal is not None and session.principal.key == key]
        for session in hit:
            expel(session)
        return len(hit)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._open)

    def judged(self, session: Session, credentials: Credentials, verdict: Principal | ClawError | None) -> None:
        """What this connection showed was looked at again. `verdict`: None where it is no good any more, an error where that can
        not be known."""
        if isinstance(verdict, ClawError) or session not in self._open or session.credentials != credentials or session.barred:
            return
        if verdict is None:
            expel(session)
        else:
            renew(session, verdict)
