"""What ails a gateway, from its configuration and its log alone: pure functions, no network, no clock of their own.

Reading order: `evidence.py` counts what the lines say; `timeouts.py`, `clients.py` and `refusals.py` make findings of the counts;
`beforehand.py` reads the configuration, and what a load balancer (`balancers.py`) would do to it; `report.py` prints.

Rule 1: a line of the log is another's text: a field of the wrong type counts as missing, and what is kept of it is bounded.
Rule 2: every finding names its cause out of `CAUSES`, whose fault it is, where, how often, and what to change, by its key.
Rule 3: a value is suggested only where the log or the documentation of somebody's default gives one.
"""

from __future__ import annotations

from clawproxy.config import Config
from clawproxy.doctor.balancers import BALANCERS, Balancer
from clawproxy.doctor.beforehand import contradictions, in_front
from clawproxy.doctor.clients import about_clients
from clawproxy.doctor.evidence import Evidence, gather
from clawproxy.doctor.findings import CAUSES, Change, Finding
from clawproxy.doctor.refusals import about_refusals
from clawproxy.doctor.report import as_json, as_text
from clawproxy.doctor.timeouts import about_timeouts

__all__ = ["BALANCERS", "CAUSES", "Balancer", "Change", "Evidence", "Finding", "as_json", "as_text", "diagnose", "gather"]


def diagnose(config: Config, evidence: Evidence, behind: Balancer | None = None) -> list[Finding]:
    """All there is to say, the most harmful first; what only may happen comes last."""
    found = [
        *about_timeouts(config, evidence),
        *about_clients(config, evidence, behind),
        *about_refusals(config, evidence),
        *contradictions(config),
        *in_front(config, behind),
    ]
    return sorted(found, key=lambda finding: -finding.harm)
