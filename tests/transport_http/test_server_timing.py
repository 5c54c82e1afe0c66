"""`Server-Timing`: the templates say what the table of phases says."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from clawproxy.context import Timing
from clawproxy.http1 import response
from clawproxy.transport.http import server_timing

SECONDS = st.one_of(st.none(), st.floats(0, 700), st.sampled_from([0.0, 1e-9, 4.9e-7, 0.0005, 599.9999999]))
_VALUE = re.compile(r"(?:[a-z_]+;dur=[0-9]+\.[0-9]{3}(?:, |\Z))*")


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)
@example(None, 0.1, 0.2, 0.3, 0.4, None)
@example(None, 0.1, 0.2, 0.3, 0.4, 0.5)
@example(None, 0.1, None, 0.2, 0.3, None)
@example(None, 0.1, None, 0.2, 0.3, 0.5)
@example(None, None, None, None, None, None)
def test_the_header_holds_every_phase_that_was_reached(
    queue: float | None,
    policy: float | None,
    connect: float | None,
    first_token: float | None,
    upstream: float | None,
    total: float | None,
) -> None:
    timing = Timing(queue, policy, connect, first_token, upstream, total)
    value = server_timing(timing)
    assert _VALUE.fullmatch(value)
    response.whole(200, [("server-timing", value)], b"")  # fit to be a field's value
    pairs = [entry.split(";dur=") for entry in value.split(", ")] if value else []
    read = {name: float(text) for name, text in pairs}
    wanted = timing.milliseconds()
    assert list(read) == list(wanted)
    # Half a thousandth may fall to either side: the table rounds a sum in another order.
    assert all(abs(read[name] - wanted[name]) < 0.0011 for name in read)
