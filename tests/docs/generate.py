"""Writes the generated pages of docs/: `python -m tests.docs.generate`. A test keeps them in step with the code."""

from __future__ import annotations

from pathlib import Path

from clawproxy.errors import KINDS, OUTCOMES
from tests.docs import dialects, sanitize_rates
from tests.docs.timeouts import timeouts_page

DOCS = Path(__file__).parent.parent.parent / "docs"


def errors_page() -> str:
    lines = [
        "# Errors and outcomes",
        "",
        "Every error a client, a log line, a metric or the ledger can show is a row of this table (`clawproxy/errors.py`); the page is",
        "written by `make docs`. On HTTP the row gives the status and the body's `type` and `code`; on the Claw WebSocket the frame",
        "`error` carries `code` (the status), `error` (the slug), `message`, `retryable`, and, where they apply, `param`, `clock`,",
        "`limit_ms`, `setting`, `retry_after_ms`. Status 499 appears in logs only.",
        "",
        "| slug | status | WebSocket close | at fault | retryable | outcome | OpenAI type / code | message |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS.values():
        openai = f"`{kind.openai_type}` / `{kind.openai_code or kind.slug}`"
        lines.append(
            f"| `{kind.slug}` | {kind.status} | {kind.close or ''} | {kind.fault} | {'yes' if kind.retryable else ''} "
            f"| `{kind.outcome}` | {openai} | {kind.message} |"
        )
    lines += [
        "",
        "## Outcomes",
        "",
        "One per exchange, from a closed set, in the log, the metric label, the ledger and the audit row:",
        "",
        ", ".join(f"`{label}`" for label in sorted(OUTCOMES)) + ".",
        "",
        "`refused.<policy>` and `provider_error.<kind>` say which. Once a provider's terminal event was seen the outcome is `complete`",
        "(or `truncated`, where a limit on tokens ended it), whatever the socket does next.",
        "",
    ]
    return "\n".join(lines)


PAGES = {"errors.md": errors_page, "timeouts.md": timeouts_page, "dialects.md": dialects.page, "sanitize.md": sanitize_rates.page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
