"""One WebSocket connection: its reader, its clocks, its state.

Rule 1: the reader runs until the end and waits for nothing but bytes: not for a handler, not for the outbox. (The one
        exception: while a credential is being checked, for as long as the `auth` clock lets it, 64 KiB are read and no more.)
Rule 2: everything here but reading and the tasks of requests is synchronous: a frame is decided in one go.
Rule 3: the client gone (FIN, RST, close frame, dead keep-alive, dead writer) means `hang_up` for every request, at once.
Rule 4: after our close frame nothing is sent; the TCP connection ends within `LINGER` seconds, whatever the peer does.
Rule 5: no task watches a clock: the reader's own cancel scope carries the earliest deadline, and is left only when it is due.
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING, ClassVar

import trio

from clawproxy.clocks import expired
from clawproxy.context import new_id
from clawproxy.dialects import claw
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, Credentials, Principal
from clawproxy.service import Service
from clawproxy.transport.certificates import shown
from clawproxy.transport.websocket import messages, requests, revoking
from clawproxy.transport.websocket.client import ClawClient
from clawproxy.transport.websocket.frames import CODES, Broken, Control, Reader, close_frame, ping_frame, pong_frame, text_frame
from clawproxy.transport.websocket.limits import GRACE, LINGER, READ, REPLIES, UNAUTHENTICATED, Bucket
from clawproxy.transport.websocket.outbox import Outbox

if TYPE_CHECKING:
    from clawproxy.transport.websocket.prompts import StreamedPrompt

logger = logging.getLogger("clawproxy.websocket")


class Session:
    """Runs one accepted connection. See `run`.

    Attributes:
        principal: who it is, once authenticated.
        credit: what each new request may be sent before it asks for more; None without flow control.
        streams: the open requests by their ids.
    """

    speech: ClassVar[messages.Speech] = messages.CLAW
    __slots__ = (
        "_assembly", "_broken", "_checking", "_close_by", "_controls", "_done", "_failing",
        "_heard", "_held", "_misses", "_next_ping", "_nursery", "_offences", "_opened", "_outbox", "_peer",
        "_pinged", "_reader", "_replies", "_sock", "_spare", "_stream", "_verdict", "_wait", "barred", "credentials", "credit",
        "principal", "service", "streams", "used_at",
    )  # fmt: skip

    def __init__(self, stream: trio.abc.Stream, service: Service, peer: str) -> None:
        now = trio.current_time()
        self._stream = stream
        self._sock = stream.socket if isinstance(stream, trio.SocketStream) else None
        self.service = service
        self._peer = peer
        self._outbox = Outbox(stream, lambda: service.deadlines.write, self._dead, self._emptied)
        self._reader = Reader(UNAUTHENTICATED)
        self._nursery: trio.Nursery | None = None
        self._wait: trio.CancelScope | None = None
        self.streams: dict[str, requests.Asker] = {}
        self._spare = requests.Spare()
        self.credentials: Credentials | None = None
        self.principal: Principal | None = None
        self.credit: int | None = None
        self._verdict: trio.Event | None = None
        """Set when the credential under check has its verdict; None where none is under check."""
        self._checking: trio.CancelScope | None = None
        self._held = 0  # bytes received and not parsed because they wait for that verdict
        self._controls, self._offences = Bucket(20, 20.0), Bucket(50, 1.0)
        self._opened = self.used_at = self._heard = self._pinged = now
        self._replies = self._misses = 0
        self._next_ping = now + service.deadlines.keepalive_ws
        self._assembly = math.inf  # when the message under way began
        self._failing: tuple[float, Broken] | None = None
        self._close_by: float | None = None
        self._broken = self._done = self.barred = False  # barred: its credential is no good any more; what runs may finish

    async def run(self, opening: bytes, leftover: bytes, token: str | None) -> None:
        """Send `opening` (the 101), then serve until either side closes. The stream is closed when this returns.

        Args:
            leftover: what the client sent right behind its head (W-35).
            token: the credential that came with the handshake.
        """
        self._outbox.push(opening)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._outbox.run)
                if token is not None:
                    self.authenticate(token)
                try:
                    await self._read(leftover)
                    self.hang_up(ClawError("client_gone"))  # before the first await: the provider is let go at once
                    await self._farewell()
                finally:
                    self.hang_up(ClawError("client_gone"))
                    self._spare.close()
                    self._outbox.stop()
                    with trio.move_on_after(1, shield=True):
                        await trio.aclose_forcefully(self._stream)  # what was to be said has been
        finally:
            self._nursery = None

    # --- reading -------------------------------------------------------------------------------------------------------------

    async def _read(self, data: bytes) -> None:
        """Until the connection is over. Leaves its scope only when a clock is due or `_arm` is called."""
        while not self._over():
            with trio.CancelScope(deadline=self._due()) as scope:
                self._wait = scope
                while True:
                    if data:
                        self._feed(data)
                        data = b""
                    if self._over():
                        return
                    if self._verdict is not None and self._held > READ:
                        await self._verdict.wait()
                        continue
                    try:
                        if self._sock is None:
                            data = bytes(await self._stream.receive_some(READ))
                        else:  # wait, then read: the other way round most reads fail first (6 us)
                            await trio.lowlevel.wait_readable(self._sock)
                            data = os.read(self._sock.fileno(), READ)
                    except BlockingIOError:  # a false alarm
                        continue
                    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                        return
                    if not data:
                        return
            self._wait = None
            self._tick(trio.current_time())

    def _over(self) -> bool:
        return self._done

    def _feed(self, data: bytes) -> None:
        self._heard = trio.current_time()
        self._misses = 0
        self._reader.feed(data)
        if self._verdict is not None:
            self._held += len(data)
        else:
            self._drain()

    def _drain(self) -> None:
        """Take what is whole, until there is no more or a credential has to be checked first."""
        now = self._heard
        while (event := self._reader.next()) is not None:
            if isinstance(event, bytes):
                if self._close_by is None:
                    self.used_at = now
                    self.speech.receive(self, event)
            elif isinstance(event, Control):
                if self._close_by is None:  # after our close there is nobody to answer (W-34)
                    if not self._controls.take(now):
                        self._abort(Broken(1008, "too many control frames"))
                    elif event.ping:
                        self._outbox.push_control(pong_frame(event.payload))
            elif isinstance(event, Broken):
                self._abort(event)
            else:
                if self._close_by is None:
                    self.close(1000 if event.code is None else event.code, echo=event.code is not None)
                self._done = True
            if self._verdict is not None or self._done:
                break
        if not self._reader.assembling:
            self._assembly = math.inf
        elif self._assembly == math.inf:
            self._assembly = now
            self._arm(now + self.service.deadlines.body)

    # --- clocks --------------------------------------------------------------------------------------------------------------

    def _due(self) -> float:
        """When something has to happen next, in Trio's time."""
        if self._close_by is not None:
            return self._close_by
        if self._failing is not None:
            return self._failing[0]
        limits = self.service.deadlines
        due = min(self._next_ping, self._assembly + limits.body)
        if self.principal is None or self._verdict is not None:
            due = min(due, self._opened + limits.auth)
        if self.principal is None:
            return due
        if self.principal.expires is not None and not self.barred:
            due = min(due, trio.current_time() + max(0.0, self.principal.expires - time.time()))
        if limits.idle_ws < math.inf and not self.streams:
            due = min(due, max(self.used_at, self._outbox.written_at) + limits.idle_ws)
        return due

    def _arm(self, at: float) -> None:
        if self._wait is not None and at < self._wait.deadline:
            self._wait.deadline = at

    def _tick(self, now: float) -> None:  # some clock is due: which one, and what follows
        limits = self.service.deadlines
        if self._close_by is not None:
            self._done = self._done or now >= self._close_by
        elif self._failing is not None:
            if now >= self._failing[0]:
                self._give_up()
        elif (self.principal is None or self._verdict is not None) and now >= self._opened + limits.auth:
            self.refuse(expired("auth", limits.auth))
        elif now >= self._assembly + limits.body:
            self._reader.ended = self._broken = True  # its close frame could only come behind the missing rest
            self.refuse(expired("body", limits.body))
        elif not self.barred and self.principal is not None and (self.principal.expires or math.inf) <= time.time():
            revoking.expel(self)
        elif not self.streams and now >= max(self.used_at, self._outbox.written_at) + limits.idle_ws:
            self.refuse(expired("idle_ws", limits.idle_ws))
        elif now >= self._next_ping:
            self._keep_alive(now)

    def _keep_alive(self, now: float) -> None:
        """Ping; two pings without a sign of life end the connection. One still queued behind data is no miss: `write` judges."""
        limit = self.service.deadlines.keepalive_ws
        if self._pinged > self._heard and not self._outbox.size:
            self._misses += 1
        if self._misses >= 2:
            self.service.cut("keepalive_ws", 2 * limit, surface=self.speech.name, peer=str(self._peer))
            self._done = True
            self._outbox.stop()
            return
        self._pinged = now
        self._next_ping = now + limit
        self._outbox.push_control(ping_frame())

    # --- authentication --------------------------------------------------------------------------------------------------------

    def authenticate(self, token: str | None, asked: messages.Frame = EMPTY) -> None:
        """Begin to check a credential; frames behind it wait. `asked`: the `auth` it came with."""
        assert self._nursery is not None
        self._verdict = trio.Event()
        self._held = 0
        if self.principal is not None:  # a fresh credential on an open connection has the same clock
            self._opened = trio.current_time()
            self._arm(self._opened + self.service.deadlines.auth)
        self._nursery.start_soon(self._authenticate, shown(token, self._peer, self.speech.name), asked, self._verdict)

    async def _authenticate(self, credentials: Credentials, asked: messages.Frame, verdict: trio.Event) -> None:
        principal = None
        try:
            with trio.CancelScope() as self._checking:
                principal = await self.service.authenticate(credentials)
        except ClawError as error:
            self.refuse(error)
        except Exception:
            logger.exception("authenticate failed")
            self.refuse(ClawError("internal"))
        else:
            if principal is not None and self._close_by is None and not self._done:
                messages.welcome(self, principal, asked)
                self.principal, self.credentials, self.barred = principal, credentials, False
                self._reader.raise_limit(self.service.config.limits.frame)
                self._arm(self._due())
        finally:
            self._verdict = self._checking = None
            verdict.set()
        if not self._over():
            self._drain()
            if self._over():
                self._wake()

    # --- requests --------------------------------------------------------------------------------------------------------------

    def begin(self, ident: str, decode: requests.Decode, deadline: float | None, prompt: StreamedPrompt | None) -> None:
        largest = self.service.config.limits.frame
        self.start(ClawClient(ident, new_id(), self._outbox, self.finished, largest, prompt, self.credit), decode, deadline)

    def start(self, client: requests.Asker, decode: requests.Decode, deadline: float | None) -> None:
        """Start a request in a task of its own, or in one that has done with its last."""
        assert self._nursery is not None
        assert self.credentials is not None
        self.streams[client.id] = client
        job = (client, decode, deadline, self.credentials)
        if not self._spare.give(job):
            self._nursery.start_soon(requests.serve, self, self._spare, job)

    def finished(self, client: requests.Asker) -> None:
        """A request's last frame is out: its id may be used again."""
        if self.streams.get(client.id) is not client:
            return
        del self.streams[client.id]
        if not self.streams:
            if self._failing is not None:
                self._give_up()
            elif self.barred:
                self.refuse(ClawError("auth.expired"))
            elif self.service.deadlines.idle_ws < math.inf:
                self._arm(self._due())

    def hang_up(self, cause: ClawError) -> None:
        """Cancel every open request, and the check of a credential."""
        if self._checking is not None:
            self._checking.cancel()
        for client in tuple(self.streams.values()):
            client.cancel(cause)

    # --- what goes out ---------------------------------------------------------------------------------------------------------

    def reply(self, payload: bytes) -> None:
        """A frame that answers a frame. Too many unread ones are abuse: the reader does not wait, so it must not pile up."""
        self._replies += 1
        if self._replies > REPLIES:
            self._abort(Broken(1008, "too many unread answers"))
        else:
            self._outbox.push(text_frame(payload))

    def offence(self) -> None:
        """A frame that is unknown or not allowed; 50 are too many (W-32), forgiven at one a second."""
        if not self._offences.take(self._heard):
            self._abort(Broken(1008, "too many frames that are unknown or not allowed"))

    def control(self) -> bool:
        """Count an application's `ping` like a control frame; false where it was one too many."""
        if self._controls.take(self._heard):
            return True
        self._abort(Broken(1008, "too many control frames"))
        return False

    def going_away(self, deadline: float) -> None:
        self._outbox.push(text_frame(claw.going_away(round(deadline * 1000))))

    def refuse(self, error: ClawError) -> None:
        """End the connection with an error frame and the error's own close code."""
        if self._close_by is None:
            if (clock := error.details.clock) is not None:
                self.service.cut(clock, (error.details.limit_ms or 0) / 1000, surface=self.speech.name, peer=str(self._peer))
            self._outbox.push(text_frame(self.speech.error(error)))
            self.close(error.kind.close or 1011, error.slug, cause=error)

    # --- ends ------------------------------------------------------------------------------------------------------------------

    def close(self, code: int, reason: str = "", *, cause: ClawError | None = None, echo: bool = True) -> None:
        """Send a close frame behind what is queued (empty if not `echo`), end every request, and give the peer `LINGER`
        seconds. The first close stays."""
        if self._close_by is not None or self._done:
            return
        self._close_by = trio.current_time() + LINGER
        self._failing = None
        cause = cause or ClawError("client_gone")
        self._outbox.seal(close_frame(code if echo else None, reason), cause)
        self.hang_up(cause)
        self.service.count("clawproxy_websocket_closed_total", code=str(code) if code in CODES else "other")
        self._arm(self._close_by)

    def _abort(self, broken: Broken) -> None:
        """The peer broke a rule of the protocol: an answer under way may go first, for `GRACE` seconds, then the close frame."""
        if self._close_by is not None or self._failing is not None:
            return
        self._reader.ended = self._broken = True
        if broken.code == 4400:
            broken = Broken(self.speech.unreadable, broken.reason)
            self._outbox.push(text_frame(self.speech.error(ClawError("bad_frame"))))
        self._failing = (trio.current_time() + GRACE, broken)
        if self.streams:
            self._arm(self._failing[0])
        else:
            self._give_up()

    def _give_up(self) -> None:
        assert self._failing is not None
        broken = self._failing[1]
        self.close(broken.code, broken.reason, cause=ClawError("abuse") if broken.code == 1008 else None)

    def _emptied(self) -> None:
        """Everything is with the kernel. Behind a broken connection's close frame goes a FIN: its peer's end is waited for."""
        self._replies = 0
        if self._broken and self._outbox.sealed and self._sock is not None:
            try:
                self._sock.shutdown(trio.socket.SHUT_WR)
            except OSError:
                self._dead(ClawError("client_gone"))

    def _dead(self, error: ClawError) -> None:  # the writer found it so, or cut it because the client does not read
        self.hang_up(error)
        self._done = True
        self._wake()

    def _wake(self) -> None:
        if self._wait is not None:
            self._wait.cancel()

    async def _farewell(self) -> None:
        """Let a close frame reach the kernel, as far as there is time."""
        if self._close_by is not None and self._outbox.failure is None:
            with trio.CancelScope(deadline=self._close_by):
                await self._outbox.flushed()
