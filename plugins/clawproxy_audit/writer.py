"""The writer: a bounded buffer, emptied into the chain's file every 100 ms by a task of the service.

Rule 1: `add` costs the exchange a list append. Where no service task runs (a test, a tool), it writes at once.
Rule 2: at most `MOST_ROWS` rows wait. Beyond it the newest is dropped, counted and said.
Rule 3: what a team's retention says is due is cut out (`retention`) while requests go on: files are read and written beside by
        another thread, and only taken over by this one.
Rule 4: where the chain is, is anchored after `ANCHOR_ROWS` rows, after `ANCHOR_SECONDS`, and at the end; and said in the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable
from types import TracebackType

import trio

from clawproxy.context import App, Exchange
from clawproxy.errors import ConfigError
from clawproxy.hookspecs import DONE
from clawproxy_audit.anchors import Anchors, said
from clawproxy_audit.chain import Busy, Chain, key_of
from clawproxy_audit.cleaner import Cleaner
from clawproxy_audit.settings import AuditSettings

log = logging.getLogger("clawproxy.audit")

WRITE_EVERY = 0.1
"""Seconds: rows are promised on the disk within 0.25."""
MOST_ROWS = 20_000
ANCHOR_ROWS = 1000
ANCHOR_SECONDS = 60.0
_CLOSE_WITHIN = 5.0
_SAY_AGAIN = 60.0
"""Seconds between two complaints about the same trouble."""

SETTINGS = "audit.settings"
"""In `App.shared`: those the gateway began with."""

_running: dict[str, Writer] = {}


def writer_of(exchange: Exchange) -> Writer | None:
    """The exchange's gateway's writer; None outside of `lifespan`. An exchange names its instance."""
    writer = _running.get(exchange.instance)
    if writer is None and len(_running) == 1:
        (writer,) = _running.values()
    return writer


class Writer:
    """The plugin's `lifespan`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._chain: Chain | None = None
        self._rows: list[bytes] = []
        self._dropped = 0
        self._failing_since: float | None = None
        self._said = 0.0
        self._anchors: Anchors | None = None
        self._anchored = 0
        """The last row that an anchor names."""
        self._anchored_at = 0.0
        self._settings: AuditSettings | None = None
        self._cleaner: Cleaner | None = None
        self._looked = -math.inf
        """When retention was looked after."""
        self._limiter = trio.CapacityLimiter(1)
        self._wake = trio.Event()
        self._task = trio.CancelScope()

    async def __aenter__(self) -> None:
        """Raises ConfigError where the audit log can not be opened: a gateway that can not audit does not start."""
        app = self._app
        if app.state_dir is not None:
            state_dir, key = app.state_dir.expanduser(), key_of(app.pepper)
            folder = state_dir / "audit"
            self._anchors = Anchors(state_dir / "anchors", key)
            try:
                self._chain = await trio.to_thread.run_sync(Chain, folder, app.instance, key, limiter=self._limiter)
            except Busy as error:
                raise ConfigError([f"{error}. Stop it, or give this gateway its own server.state_dir."]) from error
            except OSError as error:
                raise ConfigError([f"the audit log in {folder} can not be opened ({error.strerror})."]) from error
            self._anchored_at = trio.current_time()
        _running[app.instance] = self
        if app.nursery is not None and self._chain is not None:
            app.nursery.start_soon(self._run)

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if _running.get(self._app.instance) is self:
            del _running[self._app.instance]
        self._task.cancel()
        with trio.move_on_after(_CLOSE_WITHIN, shield=True):
            await self._write()
            await self._anchor()
            async with self._limiter:
                if self._chain is not None:
                    self._chain.close()
                    self._chain = None
        if self._rows:
            log.error("%d audit rows could not be written and are lost", len(self._rows))

    def add(self, row: bytes, settings: AuditSettings) -> Awaitable[None]:
        """Settings are the exchange's own generation's. There is something to wait for only where no service task writes."""
        self._app.count("clawproxy_audit_rows_total")
        if self._chain is None:
            return DONE
        if settings is not self._settings:
            self._settings = settings
        if len(self._rows) >= MOST_ROWS:
            self._dropped += 1
            self._app.count("clawproxy_audit_dropped_total")
            return DONE
        self._rows.append(row)
        self._wake.set()
        return DONE if self._app.nursery is not None else self._write()

    async def _run(self) -> None:
        with self._task:
            while True:
                await self._clean_if_due()
                with trio.move_on_after(min(ANCHOR_SECONDS, self._pause())):
                    await self._wake.wait()
                    await trio.sleep(WRITE_EVERY)
                    self._wake = trio.Event()
                    await self._write()
                    if self._rows:
                        self._wake.set()
                await self._anchor_if_due()

    def _terms(self) -> AuditSettings:
        return self._settings or self._app.shared.get(SETTINGS) or AuditSettings()

    def _pause(self) -> float:
        return math.inf if self._cleaner is None else self._cleaner.terms.pause

    async def _clean_if_due(self) -> None:
        """Cut what is due. Raises nothing."""
        chain, settings = self._chain, self._terms()
        if chain is None or not (settings.teams or settings.retain_content < math.inf):
            self._cleaner = None
            return
        if self._cleaner is None or self._cleaner.settings is not settings:
            self._cleaner = Cleaner(chain, settings)
        elif trio.current_time() - self._looked < self._cleaner.terms.pause:
            return
        self._looked = trio.current_time()
        try:
            for path in await trio.to_thread.run_sync(self._cleaner.files):
                cutting = await trio.to_thread.run_sync(self._cleaner.begin, path)
                if cutting is not None:
                    try:
                        await trio.to_thread.run_sync(self._cleaner.finish, cutting, limiter=self._limiter)
                    except trio.Cancelled:  # not begun
                        cutting.drop()
                        raise
        except Exception as error:  # a defect, too: it is looked after again when the pause is over
            why = error if isinstance(error, OSError) else type(error).__name__
            log.error("what retention says is due could not be cut out of the audit log: %s", why)

    async def _anchor_if_due(self) -> None:
        chain = self._chain
        if chain is None or chain.seq == self._anchored:
            return
        if chain.seq - self._anchored >= ANCHOR_ROWS or trio.current_time() - self._anchored_at >= ANCHOR_SECONDS:
            await self._anchor()

    async def _anchor(self) -> None:
        """Raises nothing."""
        chain, anchors = self._chain, self._anchors
        if chain is None or anchors is None or chain.seq == self._anchored:
            return
        seq, mac = chain.seq, chain.prev
        try:
            await trio.to_thread.run_sync(anchors.write, chain.name, "anchor", seq, mac, limiter=self._limiter)
        except Exception as error:
            self._complain(error)
            return
        self._anchored, self._anchored_at = seq, trio.current_time()
        self._app.log("audit.anchor", message=said(chain.name, seq, mac))

    async def _write(self) -> None:
        """Everything that waits. Raises nothing: what could not be written waits on."""
        chain, rows, anchors = self._chain, self._rows, self._anchors
        if chain is None or anchors is None or not rows:
            return
        self._rows = []
        try:
            await trio.to_thread.run_sync(_append, chain, rows, self._terms(), anchors, limiter=self._limiter)
        except trio.Cancelled:  # not begun: a thread at work is never abandoned
            self._rows = rows + self._rows
            raise
        except Exception as error:  # whatever it is, an observer does not stop the service
            self._rows = rows + self._rows
            self._complain(error)
        else:
            self._recovered()

    def _complain(self, error: Exception) -> None:
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._said < _SAY_AGAIN:
            return
        self._said = now
        self._app.count("clawproxy_audit_errors_total")
        log.error("the audit log can not be written (%s): %d rows wait, %d dropped", error, len(self._rows), self._dropped)

    def _recovered(self) -> None:
        if self._failing_since is not None:
            log.warning("the audit log can be written again")
            self._failing_since = None
        if self._dropped:
            log.error("%d audit rows were dropped while it could not be written", self._dropped)
            self._dropped = 0


def _append(chain: Chain, rows: list[bytes], settings: AuditSettings, anchors: Anchors) -> None:
    chain.append(rows)
    try:
        chain.rotate(
            settings.max_bytes,
            settings.keep,
            settings.retain,
            lambda name, seq, mac: anchors.write(name, "pruned", seq, mac),
        )
    except OSError as error:  # the rows are written: they must not be written again
        log.error("the audit log can not be rotated: %s", error)
