"""`benchmarks.outage`, bounded: a provider dies under load, and no client notices. CLAW_OUTAGE=1 runs it in full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.outage import Answered, passed, quantile

ROOT = Path(__file__).parent.parent.parent
GOOD = {"errors": 0, "p99_ratio": 1.0, "back_s": 1.0, "refused": 5, "refused_ms": 5.0, "without_retry_after": 0}


def test_a_provider_dies_under_load_and_comes_back(tmp_path: Path) -> None:
    """On a busy machine no figure in milliseconds means anything; that nothing fails and all comes back does."""
    full = bool(os.environ.get("CLAW_OUTAGE"))
    short = [] if full else ["--rate", "40", "--normal", "0.3", "--dead", "0.8", "--no-limits"]
    command = [sys.executable, "-m", "benchmarks.outage", "--json", str(tmp_path / "figures.json"), *short]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["requests"] > 20
    assert (found["errors"], found["statuses"]) == (0, [])
    assert found["back_s"] is not None
    assert found["back_s"] <= 15.0
    assert found["refused"] > 0
    assert found["without_retry_after"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"errors": 1},
        {"p99_ratio": 2.1},
        {"back_s": None},
        {"back_s": 15.1},
        {"refused_ms": 51.0},
        {"refused": 0},
        {"without_retry_after": 1},
    ],
)
def test_a_limit_that_is_passed_is_said(changes: dict[str, float | None]) -> None:
    assert not passed(GOOD)
    [sentence] = passed({**GOOD, **changes})
    assert sentence


def test_quantiles() -> None:
    answers = [Answered(0.0, seconds / 1000, 200, "a", False) for seconds in range(100)]
    assert (quantile(answers, 0.5), quantile(answers, 0.99), quantile([], 0.5)) == (50.0, 99.0, 0.0)
