"""A-04 to A-11 over a raw socket to a whole gateway: tokens that others issue, forged, poisoned and confused.

Each is refused with 401; nobody is asked for keys because of what a token says; and a good token is let in before and after.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from clawproxy.fetch import fetch
from clawproxy_auth import keysets
from tests.e2e.harness import Running, gateway
from tests.plugins.issuing import BAD, EC, KEYS, OTHER, POISON, RSA, Elsewhere, Issuer, issuing
from tests.threats.kit import Raw, closed, document, get, post, say


@asynccontextmanager
async def trusting(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[Running, Issuer]]:
    """A gateway that believes one issuer. `failures`: so many that nothing is throttled."""
    tmp_path.mkdir(exist_ok=True)
    async with issuing(tmp_path) as issuer:
        corp = {"issuer": issuer.url, "audiences": ["gateway"], "jwks": f"{issuer.url}/jwks", "ca_file": str(issuer.ca_file)}
        corp = {name: value for name, value in {**corp, **changes}.items() if value is not None}
        async with gateway(tmp_path / "gw", sections={"auth": {"failures": 1000, "issuers": {"corp": corp}}}) as running:
            yield running, issuer


async def shown(running: Running, token: str) -> Raw:
    return await say(running.address, post(document(), headers={"Authorization": f"Bearer {token}"}))


async def refused(tmp_path: Path, row: str, more: dict[str, Callable[[Issuer], str]] | None = None) -> None:
    """Everything of `BAD` that is of this row, over a socket."""
    tokens = {name: make for name, make in BAD.items() if name.startswith(row)} | (more or {})
    assert tokens
    async with trusting(tmp_path) as (running, issuer):
        async with closed(running, calls=1):
            assert (await shown(running, issuer.token())).status == 200
        asked = list(issuer.asked)
        async with closed(running):
            for name, make in tokens.items():
                answer = await shown(running, make(issuer))
                assert answer.status == 401, (name, answer.body)
                assert answer.code == "invalid_api_key"
        assert issuer.asked == asked == ["/jwks"], "nothing a token says makes the gateway ask anybody"
        async with closed(running, calls=1):
            assert (await shown(running, issuer.token())).status == 200


async def test_a04_no_algorithm_is_none(tmp_path: Path) -> None:
    """A-04"""
    await refused(tmp_path, "A-04")


async def test_a05_a_public_key_is_no_secret(tmp_path: Path) -> None:
    """A-05: the PEM, the DER and the JWK's own text as an HMAC's key."""
    await refused(tmp_path, "A-05")


async def test_a06_a_kid_is_looked_up_and_no_more(tmp_path: Path) -> None:
    """A-06: paths, SQL, URLs, 10 kB, lists, numbers, null, none at all where there is more than one key."""

    def without(issuer: Issuer) -> str:
        return issuer.token(OTHER, header={"kid": None})

    await refused(tmp_path, "A-06", {"none": without})


async def test_a06_an_unknown_kid_has_keys_fetched_at_most_once_a_minute(tmp_path: Path) -> None:
    """A-06"""
    assert keysets.PAUSE == 60.0
    async with trusting(tmp_path) as (running, issuer):
        issuer.pages["/jwks"] = {"keys": [EC.as_dict(private=False)]}
        assert (await shown(running, issuer.token(EC))).status == 200
        issuer.pages["/jwks"] = KEYS
        async with closed(running):
            for _ in range(20):
                assert (await shown(running, issuer.token(RSA))).status == 401
        assert issuer.asked == ["/jwks"]


async def test_a07_a_token_brings_no_key_of_its_own(tmp_path: Path) -> None:
    """A-07: `jwk`, `jku`, `x5u`, `x5c`."""
    await refused(tmp_path, "A-07")


async def test_a08_what_is_critical_and_not_understood(tmp_path: Path) -> None:
    """A-08"""
    await refused(tmp_path, "A-08")


async def test_a09_poisoned_keys_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-09: what is too large, too many, no JSON, symmetric, slow or elsewhere is refused and counted; the keys before stay."""
    monkeypatch.setattr(keysets, "PAUSE", 0.0)
    monkeypatch.setitem(cast(dict[str, Any], fetch.__kwdefaults__), "seconds", 0.2)
    async with trusting(tmp_path, refresh="1ms") as (running, issuer):
        assert (await shown(running, issuer.token())).status == 200
        poison = {**POISON, "redirect": Elsewhere(f"{issuer.url}/other"), "10 MB": b" " * 10_000_000}
        issuer.pages["/other"] = KEYS
        async with closed(running, calls=len(poison)):
            for name, page in poison.items():
                issuer.pages["/jwks"] = page
                assert (await shown(running, issuer.token(jti=name))).status == 200, name
        assert "/other" not in issuer.asked
        host, _, port = running.admin.removeprefix("http://").rpartition(":")
        page = await say((host, int(port)), get("/metrics").replace(b"gw.test", b"localhost"))
        counted = dict(re.findall(r'clawproxy_jwks_fetches_total{result="(\w+)"} (\d+)', page.body.decode()))
        assert counted == {"ok": "1", "failed": str(len(poison))}


async def test_a09_keys_nobody_vouches_for(tmp_path: Path) -> None:
    """A-09: another authority's certificate; another issuer's discovery document."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with trusting(tmp_path, ca_file=str(other)) as (running, issuer), closed(running):
        assert (await shown(running, issuer.token())).status == 401
        assert issuer.asked == []
    async with trusting(tmp_path / "2", jwks=None) as (running, issuer), closed(running):
        issuer.pages["/.well-known/openid-configuration"]["issuer"] = issuer.url + "/other"
        assert (await shown(running, issuer.token())).status == 401
        assert issuer.asked == ["/.well-known/openid-configuration"]


async def test_a10_what_a_token_claims_must_hold(tmp_path: Path) -> None:
    """A-10: times, audiences and issuers, exactly; 60 s of leeway at most."""
    made: dict[str, Callable[[Issuer], str]] = {
        "past": lambda issuer: issuer.token(exp=time.time() - 61),
        "long past": lambda issuer: issuer.token(exp=1),
        "aud list with a prefix": lambda issuer: issuer.token(aud=["gate", "gateway/"]),
        "iss beginning": lambda issuer: issuer.token(iss=issuer.url[:-1]),
    }
    await refused(tmp_path, "A-10", made)


@pytest.mark.parametrize("same", [20, 100, 200])
async def test_a11_a_verdict_is_of_the_whole_token(tmp_path: Path, same: int) -> None:
    """A-11: one that was let in a moment ago, and a forged one that begins the same."""

    def forged(issuer: Issuer) -> str:
        good, other = issuer.token(), issuer.token(OTHER, sub="mallory")
        begin = good[:same]
        return begin + other[same:] if begin != other[:same] else other

    def tampered(issuer: Issuer) -> str:
        good = issuer.token()
        return good[:-20] + ("A" * 20)

    await refused(tmp_path, "A-11", {"forged": forged, "tampered": tampered})


async def test_a11_a_verdict_ends_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-11: within the seconds for which it is reused."""
    async with trusting(tmp_path, leeway="1s") as (running, issuer):
        token = issuer.token(exp=time.time() + 60)
        assert (await shown(running, token)).status == 200
        real = time.time
        monkeypatch.setattr("clawproxy.gateway.time.time", lambda: real() + 62)
        async with closed(running):
            assert (await shown(running, token)).status == 401
