"""What each message of a client means: one whole text message in, a decision out, synchronously.

Rule 1: an error about a frame never carries the `id` of an open request, which would end it in the client's eyes; the id goes
        into `ref`.
Rule 2: before authentication only `auth` and `ping` mean anything; a request is a 401 and the end (4401).
Rule 3: unknown types are ignored and counted (W-29, W-32).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

from clawproxy._version import __version__
from clawproxy.context import new_id
from clawproxy.dialects import claw, claw_plain, jsonio
from clawproxy.errors import ClawError
from clawproxy.messages import ChatRequest, Principal
from clawproxy.transport.websocket.client import ClawClient

if TYPE_CHECKING:
    from clawproxy.transport.websocket.session import Session

SERVER: Mapping[str, str] = {"name": "clawproxy", "version": __version__, "protocol": claw.PROTOCOL}
STREAMS = 32
"""Requests open at once on one connection, at most (W-19)."""
Frame = Mapping[str, Any]


@frozen(slots=True)
class Speech:
    """What differs between the protocols a connection may speak.

    Attributes:
        name: the surface.
        receive: decides one whole message.
        error: the payload that tells of an error of the connection.
        unreadable: the close code for binary messages.
    """

    name: str
    receive: Callable[[Any, bytes], None]
    error: Callable[[ClawError], bytes]
    unreadable: int


def receive(session: Session, data: bytes) -> None:
    """Decide one message."""
    if session.principal is not None and session.service.config.limits.json_depth >= claw_plain.DEPTH:
        request = claw_plain.plain(data)
        if request is not None:
            _open(session, new_id() if request.id is None else request.id, request.request, request.deadline())
            return
    try:
        frame = jsonio.decode(data, depth=session.service.config.limits.json_depth)
    except ClawError as error:
        if error.slug == "invalid_request":  # JSON, but more values than anybody needs
            session.offence()
            session.reply(claw.error(error))
        else:
            session.refuse(ClawError("bad_frame", error.message))
        return
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        session.refuse(ClawError("bad_frame"))
        return
    kind = frame["type"]
    decide = TYPES.get(kind)
    if decide is None:
        session.offence()
    elif session.principal is None and kind not in ("auth", "ping"):
        session.refuse(ClawError("auth.missing", "Send `auth` first."))
    else:
        decide(session, frame)


def welcome(session: Session, principal: Principal, resuming: bool) -> None:
    """Answer an accepted credential."""
    known = session.principal
    if known is not None and known.key != principal.key:
        session.refuse(ClawError("auth.ambiguous", "This connection belongs to another credential."))
        return
    limits = session.service.config.limits
    shown = {
        "frame": int(limits.frame),
        "in_flight": most(session),
        "json_depth": limits.json_depth,
        "messages": limits.messages,
    }
    # The token names nothing yet: resuming comes later, and `resume` says so.
    session.reply(claw.auth_ok(new_id(), principal, secrets.token_urlsafe(24), shown, SERVER))
    if resuming:
        session.reply(claw.error(ClawError("session.expired")))


def most(session: Session) -> int:
    """How many requests this connection may have open at once."""
    return min(STREAMS, session.service.config.limits.in_flight_per_connection or STREAMS)


# --- the types -------------------------------------------------------------------------------------------------------------


def _auth(session: Session, frame: Frame) -> None:
    token = frame.get("token")
    if token is None:
        session.refuse(ClawError("auth.missing"))
    elif not isinstance(token, str) or not 0 < len(token) <= 8192:
        session.refuse(ClawError("auth.invalid"))
    else:
        session.authenticate(token, frame.get("session_id") is not None or frame.get("resume_token") is not None)


def _request(session: Session, frame: Frame) -> None:
    ident = frame.get("id")
    if ident is None:
        ident = new_id()
    elif not claw.valid_id(ident):
        session.offence()
        session.reply(claw.error(ClawError("invalid_request", "`id` must be a string of 1 to 128 characters.", param="id")))
        return
    _open(session, ident, partial(claw.decode_request, frame), claw.deadline(frame))


def _open(session: Session, ident: str, decode: Callable[[int], ChatRequest], deadline: float | None) -> None:
    """Begin a request whose id is in order. `decode` gets how many messages it may have."""
    if ident in session.streams:
        session.offence()
        session.reply(claw.error(ClawError("duplicate_id", param="id"), ident))
        return
    refused = session.service.admit()
    if len(session.streams) >= most(session):
        refused = ClawError("limit.in_flight", "Too many requests at once on this connection.")
    if refused is not None:
        session.reply(claw.Answer(ident, new_id()).error(refused))
        return
    session.begin(ident, decode, deadline)


def _cancel(session: Session, frame: Frame) -> None:
    ident = frame.get("id")
    client = session.streams.get(ident) if isinstance(ident, str) else None
    if not isinstance(client, ClawClient):
        session.offence()
        session.reply(claw.error(ClawError("unknown_id", param="id"), ident if claw.valid_id(ident) else None))
    else:
        client.cancel_by_client()


def _ping(session: Session, frame: Frame) -> None:
    if session.control():
        session.reply(claw.pong(frame.get("t")))


def _resume(session: Session, frame: Frame) -> None:
    session.offence()
    session.reply(claw.error(ClawError("session.expired")))


def _later(session: Session, frame: Frame) -> None:
    session.offence()
    ident = frame.get("id")
    failure = ClawError("not_implemented", f"`{frame['type']}` is not implemented yet.", param="type")
    session.reply(claw.error(failure, ident if claw.valid_id(ident) else None))


TYPES: Mapping[str, Callable[[Session, Frame], None]] = {
    "auth": _auth,
    "llm_request": _request,
    "llm_cancel": _cancel,
    "ping": _ping,
    "resume": _resume,
    "llm_prompt_chunk": _later,
    "llm_append": _later,
    "credit": _later,
}
CLAW = Speech(claw.NAME, receive, claw.error, 4400)
