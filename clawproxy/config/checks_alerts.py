"""The checks of `[alerts]`: events there are, addresses that can be posted to, thresholds that mean something."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from clawproxy.config.budgets import parse_soft
from clawproxy.config.findings import Findings
from clawproxy.config.schema import AlertsConfig
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown

EVENTS: Final = (
    "budget.soft",
    "budget.exhausted",
    "budget.overrun",
    "provider.quota",
    "provider.auth",
    "breaker.open",
    "error_rate",
    "latency",
    "unusual_use",
)
_HERE = frozenset({"127.0.0.1", "::1", "localhost"})


def check_alerts(alerts: AlertsConfig, found: Findings) -> None:
    for index, event in enumerate(alerts.events):
        if event not in EVENTS:
            found.wrong(("alerts", "events", index), f'"{shown(event)}" is no event; {suggest(event, EVENTS)}')
    if alerts.url is not None and alerts.url.scheme in ("", "http", "https"):
        problem = problem_with_url(alerts.url.value)
        if problem is not None:
            found.wrong(("alerts", "url"), f"{problem}; write https://host/path, or a reference to it, like env:NAME")
    if alerts.secret is not None and alerts.url is None:
        found.wrong(("alerts", "secret"), "signs nothing without a url; set alerts.url, or remove it")
    for name, least in (("window", 1.0), ("repeat", 0.0)):
        seconds = getattr(alerts, name)
        if not least <= seconds <= 86_400:
            found.wrong(("alerts", name), 'is out of bounds; write from "1s" to "24h"')
    if alerts.error_rate is not None:
        try:
            parse_soft(alerts.error_rate)
        except ValueError as error:
            found.wrong(("alerts", "error_rate"), str(error).replace("of the limit", "of the requests").replace("80%", "5%"))
    if alerts.latency is not None and alerts.latency <= 0:
        found.wrong(("alerts", "latency"), 'would always be told; write how late is too late, like "10s"')
    if alerts.least < 1:
        found.wrong(("alerts", "least"), "must be at least 1; write how many requests a share or a percentile takes")
    if alerts.unusual_use is not None and not 1 < alerts.unusual_use <= 1_000_000:
        found.wrong(("alerts", "unusual_use"), "must be more than 1; write how many times the usual is unusual, like 5")
    if alerts.unusual_least < 0:
        found.wrong(("alerts", "unusual_least"), "is negative; write how many tokens an hour are never unusual")


def problem_with_url(url: str) -> str | None:
    """Why nothing can be posted there; None where it can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or parts.username is not None or parts.fragment or not url.isascii():
        return "is not a URL of the form https://host/path"
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _HERE):
        return "must begin with https:// (http:// only to this machine itself)"
    return None
