"""The findings, printed: for people in 80 columns, for programs as JSON."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

from clawproxy.doctor.evidence import Evidence
from clawproxy.doctor.findings import CAUSES, Finding

WIDTH = 80
_INDENT = "   "


def as_text(findings: Sequence[Finding], evidence: Evidence | None) -> str:
    """`evidence`: None where no log was read."""
    out = [_wrapped(_read(evidence), "")]
    harmful = [finding for finding in findings if finding.wrong]
    if not harmful:
        out.append("Nothing is wrong." if evidence is not None else "The configuration contradicts nothing.")
    for place, finding in enumerate(harmful, 1):
        out += ["", *_one(f"{place}. ", finding)]
    for finding in findings:
        if not finding.wrong:
            out += ["", *_one("-  ", finding)]
    return "\n".join(_plain(line) for line in "\n".join(out).split("\n")) + "\n"


def _one(mark: str, finding: Finding) -> list[str]:
    lines = [_wrapped(f"{mark}{CAUSES[finding.cause]}{_often(finding)}", _INDENT)]
    told = f"{', '.join(finding.where)}; " if finding.where else ""
    clock = f"clock {finding.clock}; " if finding.clock else ""
    lines.append(_wrapped(f"{_INDENT}{clock}{told}at fault: {finding.fault}", _INDENT))
    lines.append(_wrapped(f"{_INDENT}{finding.why}", _INDENT))
    return lines + [f"{_INDENT}-> {change.key}{_set(change.value)}" for change in finding.change]


def _often(finding: Finding) -> str:
    if not finding.count:
        return f": {finding.saved} attempts, each made good by another" if finding.saved else ""
    said = f": {finding.count}" + (f" of {finding.of}" if finding.of >= finding.count > 0 else "")
    return said + (f" (and {finding.saved} that another attempt made good)" if finding.saved else "")


def _set(value: str) -> str:
    """As it is written in TOML."""
    if not value or value.startswith("above "):
        return f": {value or 'what it should be is yours to say'}"
    return f" = {value}" if value.isdigit() else f' = "{value}"'


def _read(evidence: Evidence | None) -> str:
    if evidence is None:
        return "No log was read (see --log): only the configuration was looked at."
    span = f", {evidence.first[:19]} to {evidence.last[:19]}" if evidence.first else ""
    others = f"; {evidence.unread} other lines were left out" if evidence.unread else ""
    return f"{evidence.requests} requests in {evidence.lines} lines{span}{others}."


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _plain(line: str) -> str:
    """Names come from a log, so from clients: nothing of them moves a cursor or reorders a line."""
    return "".join(char if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else "·" for char in line)


def as_json(findings: Sequence[Finding], evidence: Evidence | None) -> str:
    """One object: `{"requests", "lines", "healthy", "findings": [{"cause", "fault", "count", "clock", "setting", ...}]}`."""
    document: dict[str, Any] = {
        "requests": evidence.requests if evidence else None,
        "lines": evidence.lines if evidence else None,
        "healthy": not any(finding.wrong for finding in findings),
        "findings": [
            {
                "cause": finding.cause,
                "wrong": finding.wrong,
                "fault": finding.fault,
                "count": finding.count,
                "saved": finding.saved,
                "clock": finding.clock,
                "setting": finding.setting,
                "where": list(finding.where),
                "why": finding.why,
                "change": [{"key": change.key, "value": change.value or None} for change in finding.change],
            }
            for finding in findings
        ],
    }
    return json.dumps(document, indent=2) + "\n"
