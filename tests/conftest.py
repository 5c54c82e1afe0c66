"""Options of the suite. Fixtures live beside the tests that use them; the test kit's are in `clawproxy.testing`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bad-inputs", default="10000", help="how many generated bad inputs tests/e2e/test_bad_inputs.py sends")
