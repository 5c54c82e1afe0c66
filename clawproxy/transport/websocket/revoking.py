"""What becomes of an open connection whose credential is no good any more (W-33).

Rule: nothing new begins on it. What runs finishes, or is cut, as `[server] on_revoke` says; then the connection ends, as 4401.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawproxy.errors import ClawError
from clawproxy.messages import Principal

if TYPE_CHECKING:
    from clawproxy.transport.websocket.requests import Asker
    from clawproxy.transport.websocket.session import Session


def expel(session: Session) -> None:
    """End the connection: at once, or where requests may finish as soon as none runs."""
    if session.streams and session.service.config.server.on_revoke == "finish":
        session.barred = True
    else:
        session.refuse(ClawError("auth.expired"))


def turn_down(session: Session, client: Asker, error: ClawError) -> None:
    """A request failed for the connection's credential, and was told so."""
    others = any(each is not client for each in session.streams.values())
    if others and session.service.config.server.on_revoke == "finish":
        session.barred = True
    else:
        session.close(error.kind.close or 4401, cause=error)


def renew(session: Session, principal: Principal) -> None:
    """The credential was looked at again, and is good: it may have got an end meanwhile."""
    known = session.principal
    if known is None or known.key != principal.key:
        return
    session.principal = principal
    if principal.expires != known.expires:
        session._arm(session._due())
