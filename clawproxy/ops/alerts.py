"""What an operator should know at once: told to plugins, to a file, and to a webhook.

    tell            synchronous, never waits, never raises; from budgets, breakers, credentials, and the watch
    write           a task: `state_dir/events/alerts.jsonl`
    send            a task: the webhook
    watch           a task: shares of errors, late first tokens, unusual use (`alertrules`)

Rule 1: nobody waits for an alert. Queues are bounded; what finds one full is dropped, counted and logged.
Rule 2: the same alert about the same thing is told again only after `alerts.repeat`.
Rule 3: a webhook is posted to a few times, with pauses that grow; then the alert stays in the log and the file. Nothing that is
        logged holds its address beyond the host.
Rule 4: an alert holds names and figures, never anything that was said, and no secret.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from clawproxy.config import AlertsConfig
from clawproxy.context import Alert, App, new_id
from clawproxy.fetch import FetchError, fetch
from clawproxy.ops.alertrules import Watch
from clawproxy.ops.logs import log_event, log_exception
from clawproxy.ops.reports import instant
from clawproxy.stores.statedir import make_private_dir, open_private

log = logging.getLogger("clawproxy.alerts")

MOST_WAITING: Final = 256
"""Alerts in each queue."""
MOST_REMEMBERED: Final = 4096
"""Alerts of which it is remembered when they may be told again."""
FILE_BYTES: Final = 4 * 1024 * 1024
FILES: Final = 4
"""The newest, and those before it."""
PAUSES: Final = (1.0, 5.0, 25.0)
"""Seconds before the second, third and fourth try."""
TRY_AGAIN: Final = frozenset({408, 425, 429})
"""Statuses below 500 after which another try may do."""
_CREDENTIALS: Final = {"provider_error.quota": "provider.quota", "provider_error.auth": "provider.auth"}
_BUDGETS: Final = {
    "soft": "budget.soft",
    "hard": "budget.exhausted",
    "exhausted": "budget.exhausted",
    "overrun": "budget.overrun",
}
_THREADS = trio.CapacityLimiter(2)


class Alerts:
    """One service's, across reloads."""

    def __init__(self, app: App, hook: Callable[[Alert], None]) -> None:
        """Args: hook: tells the plugins; must not raise."""
        self._app = app
        self._hook = hook
        self._quiet: dict[tuple[str, str], float] = {}
        # Bounded, and never waited for: rule 1.
        self._to_file, self._filed = trio.open_memory_channel[Alert](MOST_WAITING)  # noqa: TID251
        self._to_webhook, self._posted = trio.open_memory_channel[Alert](MOST_WAITING)  # noqa: TID251
        self.watching: Watch | None = None
        """Told of each exchange that ends; None where nothing is to be watched."""

    def configure(self, config: AlertsConfig) -> None:
        """A new generation's. What was seen stays."""
        if config.error_rate is None and config.latency is None and config.unusual_use is None:
            self.watching = None
        elif self.watching is None:
            self.watching = Watch(config, self.tell)
        else:
            self.watching.config = config

    # --- what is told --------------------------------------------------------------------------------------------------------

    def tell(self, event: str, about: str, message: str, **details: Any) -> None:
        """Args: about: what it is about, for rule 2. details: JSON values; None stays out."""
        config, now = self._app.config.alerts, time.monotonic()
        if config.events and event not in config.events:
            return
        if now < self._quiet.get((event, about), 0.0):
            return
        if len(self._quiet) >= MOST_REMEMBERED:
            self._quiet = {key: until for key, until in self._quiet.items() if until > now}
            while len(self._quiet) >= MOST_REMEMBERED:
                del self._quiet[next(iter(self._quiet))]
        self._quiet[event, about] = now + config.repeat
        said = {name: value for name, value in details.items() if value is not None}
        alert = Alert(new_id(), event, time.time(), message, said, self._app.instance)
        self._app.count("clawproxy_alerts_total", event=event)
        log_event("alert", "warning", alert=event, message=message, cause=f"{event} {about}")
        self._hook(alert)
        if self._app.state_dir is not None and config.file:
            self._put(self._to_file, "file", alert)
        if config.url is not None:
            self._put(self._to_webhook, "webhook", alert)

    def _put(self, queue: trio.MemorySendChannel[Alert], name: str, alert: Alert) -> None:
        try:
            queue.send_nowait(alert)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._app.count("clawproxy_alerts_dropped_total", queue=name)
            log_event("alert.dropped", "error", alert=alert.event, detail=name)

    def budget(self, said: Mapping[str, Any]) -> None:
        """A watcher of the meter's budgets (docs/budgets.md)."""
        event = _BUDGETS.get(said["what"])
        if event is not None:
            name, scope, used, limit = said["budget"], said["scope"], said["used"], said["limit"]
            words = {"soft": "has come to its soft limit", "overrun": "was overrun"}.get(said["what"], "is used up")
            details = {"budget": name, "scope": scope, "unit": said["unit"], "used": used, "limit": limit}
            self.tell(event, f"{name} {scope}", f"Budget {name} {words} for {scope}.", **details)

    def log(self, event: str, level: str = "info", **fields: Any) -> None:
        """`App.log`: a line of the log, which may be an alert, too."""
        log_event(event, level, **fields)
        provider, model = str(fields.get("provider")), str(fields.get("provider_model"))
        if event == "route.breaker" and fields.get("state") == "open":
            message = f"The breaker of {provider} for {model} is open."
            details = {name: fields.get(name) for name in ("provider", "provider_model", "rest_ms", "error")}
            self.tell("breaker.open", f"{provider} {model}", message, **details)
        elif fields.get("alert") and (kind := _CREDENTIALS.get(str(fields.get("error")))):
            words = "has nothing left to spend" if kind == "provider.quota" else "was refused"
            details = {name: fields.get(name) for name in ("provider", "provider_model", "credential", "rest_ms", "error")}
            self.tell(kind, f"{provider} {fields.get('credential')}", f"A credential of {provider} {words}.", **details)

    # --- the file ------------------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Until cancelled; what waits then is written, too."""
        waiting: list[bytes] = []
        try:
            while True:
                waiting = [_line(await self._filed.receive())]
                while True:
                    try:
                        waiting.append(_line(self._filed.receive_nowait()))
                    except trio.WouldBlock:
                        break
                lines = waiting
                await trio.to_thread.run_sync(self._append, lines, limiter=_THREADS)
                waiting = []
        finally:
            while True:
                try:
                    waiting.append(_line(self._filed.receive_nowait()))
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            if waiting:
                self._append(waiting)

    def _append(self, lines: list[bytes]) -> None:
        """Blocking."""
        assert self._app.state_dir is not None
        path = self._app.state_dir / "events" / "alerts.jsonl"
        try:
            make_private_dir(path.parent)
            if path.exists() and path.stat().st_size > FILE_BYTES:
                for number in range(FILES - 1, 0, -1):
                    older = _older(path, number - 1)
                    if older.exists():
                        older.rename(_older(path, number))
            fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(fd, b"".join(lines))
            finally:
                os.close(fd)
        except Exception as error:  # the log has them
            log_exception("alert.file_failed", error)

    # --- the webhook ---------------------------------------------------------------------------------------------------------

    async def send(self) -> None:
        """Until cancelled."""
        while True:
            alert = await self._posted.receive()
            try:
                await self._deliver(alert)
            except Exception as error:  # a defect; the next one may do
                log_exception("alert.crashed", error)

    async def _deliver(self, alert: Alert) -> None:
        why = ""
        for pause in (0.0, *PAUSES):
            if pause:
                await trio.sleep(pause * self._app.random.uniform(0.8, 1.2))
            try:
                status = await self._post(alert)
            except (FetchError, LookupError) as error:
                why = str(error)
                continue
            if 200 <= status < 300:
                self._app.count("clawproxy_alert_posts_total", result="ok")
                return
            why = f"it answered {status}"
            if status < 500 and status not in TRY_AGAIN:
                break
        self._app.count("clawproxy_alert_posts_total", result="failed")
        log_event("alert.not_sent", "error", alert=alert.event, detail=why)

    async def _post(self, alert: Alert) -> int:
        """Raises FetchError, LookupError."""
        config = self._app.config.alerts
        if config.url is None:  # taken away since
            return 200
        url = (await trio.to_thread.run_sync(self._app.resolve_secret, config.url, limiter=_THREADS)).reveal()
        body = _encode(document(alert))
        headers = [("content-type", "application/json"), ("x-claw-event", alert.event), ("x-claw-alert-id", alert.id)]
        if config.secret is not None:
            secret = await trio.to_thread.run_sync(self._app.resolve_secret, config.secret, limiter=_THREADS)
            headers.append(("x-claw-signature", signature(secret.reveal(), body, int(time.time()))))
        return (await fetch(url, method="POST", headers=headers, body=body)).status

    async def watch(self) -> None:
        """Look, every so often, at what the watch has seen; until cancelled."""
        while True:
            watching = self.watching
            if watching is None:
                await trio.sleep(1.0)
                continue
            try:
                await watching.begin(self._app)
                watching.look(trio.current_time())
            except Exception as error:  # a ledger that can not be read, or a defect: the service goes on, and so does the watch
                log_exception("alert.crashed", error)
            await trio.sleep(watching.step)


_encode = msgspec.json.Encoder().encode


def document(alert: Alert) -> dict[str, Any]:
    """As the file and the webhook have it."""
    return {
        "id": alert.id,
        "event": alert.event,
        "time": instant(alert.at),
        "instance": alert.instance,
        "message": alert.message,
        "details": alert.details,
    }


def _line(alert: Alert) -> bytes:
    return _encode(document(alert)) + b"\n"


def _older(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def signature(secret: str, body: bytes, at: int) -> str:
    """`t=1760000000,v1=HEX`: HMAC-SHA256 of `t`, a full stop and the body. Who gets it compares in constant time and refuses what
    is older than some minutes: it was played again."""
    made = hmac.new(secret.encode(), f"{at}.".encode() + body, "sha256").hexdigest()
    return f"t={at},v1={made}"
