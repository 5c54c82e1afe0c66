"""Options of the suite. Fixtures live beside the tests that use them; the test kit's are in `clawproxy.testing`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long it takes to draw examples says how busy the machine is, and nothing of what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bad-inputs", default="10000", help="how many generated bad inputs tests/e2e/test_bad_inputs.py sends")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The canary sweep after the suite: no key of the tests' gateways is in anything that they left."""
    base: Path | None = getattr(getattr(session.config, "_tmp_path_factory", None), "_basetemp", None)
    if base is None:  # no test used a folder
        return
    from tests.threats.left import found_in

    found = found_in(base)
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nthe canary sweep found keys:", *found[:20], sep="\n  ")
