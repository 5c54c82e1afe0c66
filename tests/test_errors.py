"""The error table is closed, consistent, and what the documentation prints."""

from __future__ import annotations

import copy
import json
import pickle

import attrs
import pytest

import clawproxy
from clawproxy.clocks import CLOCKS, SLUGS, Deadlines, expired
from clawproxy.errors import KINDS, OUTCOMES, ClawError
from clawproxy.secrets import Secret

WITHOUT_ERROR = {"grace", "session", "drain", "keepalive_sse", "keepalive_ws", "idle_ws"}


@pytest.mark.parametrize("clock", sorted(set(CLOCKS) - WITHOUT_ERROR))
def test_every_clock_has_a_row_that_names_it(clock: str) -> None:
    error = expired(clock, 1.5)
    assert error.slug == SLUGS.get(clock, f"timeout.{clock}")
    assert error.details.clock == clock
    assert error.details.limit_ms == 1500
    assert error.details.setting == f"deadlines.{clock}"
    assert f"`{clock}`" in error.message
    assert error.kind.fault in error.message
    assert error.kind.outcome in OUTCOMES


def test_statuses_are_never_mixed_up() -> None:
    for kind in KINDS.values():
        if kind.slug.startswith("provider_error.") or kind.slug.startswith("timeout."):
            assert kind.status not in {401, 403}, f"{kind.slug}: a provider's refusal of our key is not the client's"
        if kind.fault == "client":
            assert 400 <= kind.status < 500 or kind.status in {501, 505}, kind.slug
        if kind.fault in {"provider", "gateway", "operator"}:
            assert kind.status >= 500 or kind.slug in {"provider_error.rate_limited", "provider_error.rejected"}, kind.slug
        assert kind.close is None or kind.close in {1002, 1007, 1008, 1009, 1011, 1012, 1013, 4400, 4401, 4403, 4408, 4429}


def test_budget_errors_do_not_look_like_provider_billing() -> None:
    assert KINDS["budget.exhausted"].openai_type != "insufficient_quota"
    assert (KINDS["budget.exhausted"].openai_code or "budget.exhausted") != "insufficient_quota"


def test_an_unknown_slug_is_refused_at_once() -> None:
    with pytest.raises(KeyError):
        ClawError("no.such.slug")


def test_a_client_may_only_shorten_total() -> None:
    assert Deadlines().shortened(5).total == 5
    assert Deadlines().shortened(5000).total == Deadlines().total
    assert Deadlines().shortened(None) == Deadlines()


CANARY = "sk-canary-0123456789abcdef"


def test_a_secret_does_not_print() -> None:
    secret = Secret(CANARY)
    held = attrs.make_class("Held", ["secret"], frozen=True)(secret)
    texts = [repr(secret), str(secret), f"{secret}", f"{secret!r:>30}", repr(held), repr([secret]), "{:>30}".format(secret)]  # noqa: UP032
    with pytest.raises(TypeError):
        json.dumps(secret)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(secret)
    assert not [text for text in texts if CANARY[:12] in text]
    assert secret.reveal() == CANARY
    assert secret == Secret(CANARY)
    assert secret != Secret("other")


def test_the_public_names_are_there() -> None:
    assert set(clawproxy.__all__) == {*clawproxy._HOMES, "__version__"}
    for name in clawproxy.__all__:
        assert getattr(clawproxy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clawproxy.nothing
