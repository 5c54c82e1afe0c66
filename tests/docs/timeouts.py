"""Writes docs/timeouts.md: `python -m tests.docs.timeouts`. A test keeps it in step with the clocks and the table of errors."""

from __future__ import annotations

from pathlib import Path

from clawproxy.clocks import CLOCK_SLUGS, CLOCKS, Deadlines
from clawproxy.config.checks import MODEL_CLOCKS, NOT_YET, PROVIDER_CLOCKS
from clawproxy.config.units import render_duration
from clawproxy.errors import KINDS

PAGE = Path(__file__).parent.parent.parent / "docs" / "timeouts.md"

RUNS = {
    "head": "accept (TLS handshake included) to the whole request head",
    "auth": "WebSocket open to authenticated",
    "body": "head to whole body; one slower than 1 KiB/s after 5 s is cut. Also between two pieces of a streamed prompt",
    "queue": "admitted to sent: a place in the pool, concurrency, throttle",
    "connect": "DNS, TCP and TLS to a provider",
    "first_token": "request sent to first content",
    "stall": "between events with content; keep-alives do not reset it",
    "rate": 'from the first content: fewer tokens a second than this in a whole window; written `"5 tokens/s over 30s"`',
    "total": "all of it: attempts, queues and hooks take slices of it, so retries never multiply a timeout",
    "write": "one write to a client that does not read, measured in bytes accepted; also the wait for its credit",
    "idle": "HTTP: between requests",
    "idle_ws": "WebSocket: no application frame either way",
    "grace": "client gone to cancel, where `on_disconnect` is `grace`",
    "session": "a session without use",
    "drain": "SIGTERM to exit",
    "keepalive_sse": "a comment on a quiet SSE stream, so that no load balancer drops it",
    "keepalive_ws": "a ping on a WebSocket; two misses close",
    "stall_reasoning": "`stall`, where the model was asked to reason or began by it. Unless it is set, twice `stall`",
}
OWN_SLUGS = {"session": "session.expired", "drain": "shutting_down", "grace": "client_gone"}

BEGINNING = """\
# Timeouts

Every clock there is, by name. All come from one value per request (`clawproxy/clocks.py`); no other place holds a time limit of a
request. When one runs out, the error the client gets, the log line and the metric name the clock, its limit, the setting that
holds it and whose fault it is:

```json
{"type":"error","code":504,"error":"timeout.stall","clock":"stall","limit_ms":60000,"setting":"deadlines.stall", ...}
```

Set them under `[deadlines]`. The column *own* says which can also be set for one provider (`[providers.NAME.deadlines]`) or
one model (`[models.NAME.deadlines]`, which wins). A client may only shorten `total`, with `deadline_ms` on the WebSocket or the
header `x-claw-deadline-ms`.

| clock | default | own | runs | client sees | at fault |
|---|---|---|---|---|---|
"""

END = """
## Which one to change

- **`timeout.first_token` from a reasoning model**: it thinks before it speaks. Raise `first_token` for that model alone.
- **`timeout.stall`**: the provider went quiet in the middle of an answer. Only events with content count, so a provider that
  drips keep-alives, or a byte a second, is still found out. Raise it for models that pause to think.
- **`timeout.total`**: the whole request, attempts included. If it is shorter than `first_token`, `total` always ends first:
  `clawproxy check` warns of such contradictions.
- **`timeout.queue`**: no place became free. It is the gateway's own limit: raise `pool.max` or `limits.in_flight`, or run
  more instances.
- **`timeout.write`**: the client does not read. Raising it holds the provider open for a client that is not listening.
- **A load balancer in front** must have an idle limit above `keepalive_sse` and `keepalive_ws`, and one on the
  whole request above `total`.

## While a provider thinks

Clients get keep-alives: an SSE comment, or a WebSocket ping, every `keepalive_sse` and `keepalive_ws`. The first SSE
keep-alive commits the status 200, so a later failure is an error event; another route may still take over until there is content.

Clock jumps change no deadline: all clocks are monotonic.
"""


def timeouts_page() -> str:
    defaults = Deadlines()
    rows = []
    for clock in CLOCKS:
        slug = OWN_SLUGS.get(clock) or CLOCK_SLUGS.get(clock, "")
        kind = KINDS.get(slug)
        sees = fault = "-"
        if kind is not None:
            close = f", close {kind.close}" if kind.close else ""
            sees = f"{kind.status} `{slug}`{close}"
            fault = kind.fault
        own = "provider, model" if clock in PROVIDER_CLOCKS else "model" if clock in MODEL_CLOCKS else ""
        runs = RUNS[clock] + (" (not in this version)" if clock in NOT_YET else "")
        rows.append(f"| `{clock}` | {render_duration(getattr(defaults, clock))} | {own} | {runs} | {sees} | {fault} |\n")
    return BEGINNING + "".join(rows) + END


if __name__ == "__main__":
    PAGE.write_text(timeouts_page())
