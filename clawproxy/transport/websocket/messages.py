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
from clawproxy.dialects.claw_pieces import size_of
from clawproxy.errors import ClawError
from clawproxy.messages import Principal
from clawproxy.transport.websocket import credit
from clawproxy.transport.websocket.client import ClawClient
from clawproxy.transport.websocket.prompts import StreamedPrompt

if TYPE_CHECKING:
    from clawproxy.transport.websocket.requests import Decode
    from clawproxy.transport.websocket.session import Session

SERVER: Mapping[str, str] = {"name": "clawproxy", "version": __version__, "protocol": claw.PROTOCOL}
STREAMS = 32
"""Requests open at once on one connection, at most (W-19)."""
CREDIT = 0
"""What a request may be sent before it was given any credit, where its client asked for flow control."""
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
            _open(session, new_id() if request.id is None else request.id, request.request, request.deadline(), None)
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


def welcome(session: Session, principal: Principal, asked: Frame) -> None:
    """Answer an accepted credential. `asked`: the `auth` it came with."""
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
    if asked.get("credit") is True:
        session.credit = CREDIT
    if session.credit is not None:
        shown["credit"] = session.credit
    # The token names nothing yet: resuming comes later, and `resume` says so.
    session.reply(claw.auth_ok(new_id(), principal, secrets.token_urlsafe(24), shown, SERVER))
    if asked.get("session_id") is not None or asked.get("resume_token") is not None:
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
        session.authenticate(token, frame)


def _request(session: Session, frame: Frame) -> None:
    ident = frame.get("id")
    if ident is None:
        ident = new_id()
    elif not claw.valid_id(ident):
        session.offence()
        session.reply(claw.error(ClawError("invalid_request", "`id` must be a string of 1 to 128 characters.", param="id")))
        return
    if frame.get("prompt_stream") is True:
        limits = session.service.config.limits
        prompt = StreamedPrompt(frame, limits.frame, limits.messages)
        _open(session, ident, prompt.decode, claw.deadline(frame), prompt)
    else:
        _open(session, ident, partial(claw.decode_request, frame), claw.deadline(frame), None)


def _open(session: Session, ident: str, decode: Decode, deadline: float | None, prompt: StreamedPrompt | None) -> None:
    """Begin a request whose id is in order."""
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
    session.begin(ident, decode, deadline, prompt)


def _named(session: Session, frame: Frame) -> ClawClient | None:
    """The open request that a frame is about."""
    ident = frame.get("id")
    client = session.streams.get(ident) if isinstance(ident, str) else None
    return client if isinstance(client, ClawClient) else None


def _refuse(session: Session, frame: Frame, error: ClawError) -> None:
    """Answer a frame, not a request."""
    ident = frame.get("id")
    session.reply(claw.error(error, ident if claw.valid_id(ident) else None))


def _cancel(session: Session, frame: Frame) -> None:
    client = _named(session, frame)
    if client is None:
        session.offence()
        _refuse(session, frame, ClawError("unknown_id", param="id"))
    else:
        client.cancel_by_client()


def _chunk(session: Session, frame: Frame) -> None:
    """A piece for a request that is over by now is an error, but no offence: they are sent in rows, and a row may be long."""
    client = _named(session, frame)
    if client is None:
        _refuse(session, frame, ClawError("unknown_id", param="id"))
    elif client.prompt is None or client.prompt.final:
        session.offence()
        _refuse(session, frame, ClawError("invalid_request", "The prompt of this request is final.", param="id"))
    elif not client.prompt.whole:
        client.prompt.add(frame)


def _append(session: Session, frame: Frame) -> None:
    client = _named(session, frame)
    try:
        if client is None:
            raise ClawError("unknown_id", param="id")
        if client.prompt is not None and not client.prompt.whole:
            raise ClawError("invalid_request", "Its prompt is not final: send `llm_prompt_chunk`.", param="id")
        message = claw.decode_append(frame)
        client.steering.append(message, size_of(message.content or ""))
    except ClawError as error:
        session.offence()
        _refuse(session, frame, error)


def _credit(session: Session, frame: Frame) -> None:
    """A grant for a request that is over crossed its end on the way: nothing is said about it."""
    count = frame.get("n")
    if session.credit is None:
        session.offence()
        _refuse(session, frame, ClawError("invalid_request", "Ask for flow control first: `credit` in `auth`.", param="type"))
    elif not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= credit.MOST:
        session.offence()
        _refuse(session, frame, ClawError("invalid_request", f"`n` must be an integer from 1 to {credit.MOST}.", param="n"))
    else:
        client = _named(session, frame)
        if client is not None and client.credit is not None:
            client.credit.grant(count)


def _ping(session: Session, frame: Frame) -> None:
    if session.control():
        session.reply(claw.pong(frame.get("t")))


def _resume(session: Session, frame: Frame) -> None:
    session.offence()
    session.reply(claw.error(ClawError("session.expired")))


TYPES: Mapping[str, Callable[[Session, Frame], None]] = {
    "auth": _auth,
    "llm_request": _request,
    "llm_cancel": _cancel,
    "ping": _ping,
    "resume": _resume,
    "llm_prompt_chunk": _chunk,
    "llm_append": _append,
    "credit": _credit,
}
CLAW = Speech(claw.NAME, receive, claw.error, 4400)
