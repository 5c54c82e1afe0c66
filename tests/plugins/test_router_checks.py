"""What an active check's word does to breakers, as plain values and in the guard."""

from __future__ import annotations

from random import Random

import pytest

from clawproxy.context import Checked
from clawproxy_router.breakers import Breaker, BreakerSettings
from tests.plugins.test_router_resting import Desk, first

SETTINGS = BreakerSettings()
UP = Checked("a", "ok", down=False, lasts=18.0)
SHAKY = Checked("a", "timeout", down=False, lasts=18.0, failures=1)
DOWN = Checked("a", "timeout", down=True, lasts=18.0, failures=2)


def opened_by_requests() -> Breaker:
    breaker = Breaker()
    for _ in range(SETTINGS.consecutive):
        breaker.tell(False, 0.0, SETTINGS, Random(1))
    assert breaker.state == "open"
    return breaker


def test_held_until_the_next_check_and_closed_by_it() -> None:
    breaker = Breaker()
    assert breaker.hold(0.0, 18.0) == "open"
    assert breaker.look(17.9) is None
    assert breaker.hold(10.0, 18.0) is None, "no news"
    assert breaker.look(27.9) is None, "it holds from the latest on"
    assert breaker.found(20.0) == "closed"
    assert breaker.found(21.0) is None


def test_what_requests_opened_may_only_be_tried() -> None:
    breaker = opened_by_requests()
    assert breaker.found(0.5) == "half_open"
    assert breaker.wait(0.5) == 0.0
    breaker = opened_by_requests()
    breaker.hold(0.5, 18.0)
    assert breaker.found(1.0) == "half_open", "it was open before a check said so"


def test_checks_that_stop_leave_it_to_requests() -> None:
    breaker = Breaker()
    breaker.hold(0.0, 18.0)
    assert breaker.look(18.0) == "half_open"
    assert breaker.found(18.5) is None
    assert breaker.probed(True, 19.0, SETTINGS, Random(1)) == "closed"


@pytest.mark.parametrize("enabled", [True, False])
def test_every_place_of_the_provider_and_no_other(enabled: bool) -> None:
    desk = Desk()
    places = frozenset({("a", "m"), ("a", "n"), ("b", "m")})
    desk.guard = desk.made(places=places, breaking=BreakerSettings(enabled=enabled))
    desk.guard.checked(SHAKY)
    assert not desk.guard.health.breakers
    desk.guard.checked(DOWN)
    assert set(desk.guard.health.breakers) == ({("a", "m"), ("a", "n")} if enabled else set())
    assert first(desk.plan("ab")) == ("b" if enabled else "a")
    desk.guard.checked(Checked("a", "unknown", down=True, lasts=18.0))
    desk.guard.checked(SHAKY)
    assert first(desk.plan("ab")) == ("b" if enabled else "a"), "one bad check is no news, nor is one that says nothing"
    desk.guard.checked(UP)
    assert first(desk.plan("ab")) == "a"
