"""What the providers came to that are asked whether they are there (`[providers.NAME.health]`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from clawproxy.context import Checked
from clawproxy.ops.logs import log_event
from clawproxy.ops.metrics import Metrics


class Checks:
    """The last word on each."""

    def __init__(self) -> None:
        self.last: dict[str, Checked] = {}

    def keep(self, names: Collection[str]) -> None:
        """Forget the providers that are checked no more."""
        self.last = {name: check for name, check in self.last.items() if name in names}

    def note(self, check: Checked, metrics: Metrics) -> None:
        """Keep and count it, and log it where it is news."""
        before = self.last.get(check.provider)
        self.last[check.provider] = check
        metrics.count("clawproxy_provider_checks_total", provider=check.provider, result=check.result)
        if (before.result if before is not None else "ok", before is not None and before.down) != (check.result, check.down):
            log_event(
                "provider.checked",
                "warning" if check.failures else "info",
                provider=check.provider,
                state="down" if check.down else check.result,
                provider_status=check.status,
                duration_ms=round(check.seconds * 1000, 1),
            )

    def states(self) -> Mapping[str, Mapping[str, object]]:
        """By provider, for `/readyz`."""
        return {
            name: {
                "down": check.down,
                "result": check.result,
                "status": check.status,
                "failures": check.failures,
                "ms": round(check.seconds * 1000, 1),
                "at": round(check.at, 3),
            }
            for name, check in self.last.items()
        }

    def up(self) -> dict[tuple[str, ...], float]:
        """1 for those that are not down."""
        return {(name,): float(not check.down) for name, check in self.last.items()}
