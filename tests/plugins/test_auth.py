"""clawproxy_auth and the key vocabulary it stands on."""

from __future__ import annotations

import ast
import hmac
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_auth
from clawproxy import keys
from clawproxy.config import Config, KeyConfig, SecretRef
from clawproxy.config.schema import Duration
from clawproxy.context import App, Registry
from clawproxy.errors import ClawError, ConfigError
from clawproxy.messages import Principal
from clawproxy.ops import admin_keys
from clawproxy.secrets import Secret
from clawproxy.stores.base import KeyRecord, Store
from clawproxy.testing.factories import make_credentials
from clawproxy_auth import AuthSettings
from clawproxy_auth.keyring import Keyring
from clawproxy_auth.throttle import ENTRIES, Throttle

PEPPER = b"p" * 32
SECRET = "bench-secret-0123456789"


class KeyStore:
    """The part of a store that the plugin may use."""

    def __init__(self, *records: KeyRecord) -> None:
        self.records = {record.digest: record for record in records}
        self.asked = 0

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        return self.records.get(digest)


def literal(ref: SecretRef) -> Secret:
    if ref.scheme:
        raise LookupError(f"{ref.scheme}:{ref.value} is not set")
    return Secret(ref.value)


def make_app(store: KeyStore | None = None, **key: Any) -> App:
    config = Config(keys={"bench": KeyConfig(secret=SecretRef("", SECRET), **key)})
    return App(
        config=config,
        store=cast(Store, store or KeyStore()),
        instance="test",
        state_dir=None,
        pepper=PEPPER,
        resolve_secret=literal,
    )


def configured(app: App, **settings: Any) -> Keyring:
    return clawproxy_auth.configure(AuthSettings(**settings), app)


def record(token: str, **changes: Any) -> KeyRecord:
    values: dict[str, Any] = {
        "id": "k1",
        "name": "stored",
        "digest": keys.digest(PEPPER, token),
        "prefix": keys.display_prefix(token),
        "created": 0.0,
    }
    return KeyRecord(**(values | changes))


async def verdict(app: App, ring: Keyring, token: str | None, peer: str = "127.0.0.1") -> str:
    try:
        principal = await clawproxy_auth.authenticate(make_credentials(token, peer=peer), ring, app)
    except ClawError as error:
        return error.slug
    assert principal is not None
    return principal.key


def test_register() -> None:
    registry = Registry()
    clawproxy_auth.register(registry)
    assert registry.settings == {"auth": AuthSettings}


async def test_a_static_key_brings_its_principal() -> None:
    app = make_app(user="u", team="t", app="a", roles=("r",), tags=("x",), models=("gpt-*",), may_assert=True, expires=9e12)
    principal = await clawproxy_auth.authenticate(make_credentials(SECRET), configured(app), app)
    assert principal == Principal("bench", "u", "t", "a", ("r",), ("x",), ("gpt-*",), True, 9e12)
    assert cast(KeyStore, app.store).asked == 0


async def test_a_stored_key_brings_its_principal() -> None:
    token = keys.generate().reveal()
    app = make_app(KeyStore(record(token, user="u", team="t", models=("m",), expires=9e12)))
    principal = await clawproxy_auth.authenticate(make_credentials(token), configured(app), app)
    assert principal == Principal("stored", user="u", team="t", models=("m",), expires=9e12)


@pytest.mark.parametrize("token", [None, ""])
async def test_missing(token: str | None) -> None:
    app = make_app()
    assert await verdict(app, configured(app), token) == "auth.missing"


@pytest.mark.parametrize(
    "token", ["wrong", "' OR '1'='1", "x'; DROP TABLE", "%00", "a b", "tab\t", "é", "\ud800", SECRET + "\n", "x" * 1_000_000]
)
async def test_invalid(token: str) -> None:
    app = make_app()
    assert await verdict(app, configured(app), token) == "auth.invalid"


async def test_only_a_credential_reaches_the_store() -> None:
    app = make_app()
    ring = configured(app)
    for token in ("a b", "x" * 8193, "é"):
        await verdict(app, ring, token)
    assert cast(KeyStore, app.store).asked == 0
    await verdict(app, ring, "x" * 8192)
    assert cast(KeyStore, app.store).asked == 1


async def test_expired_and_revoked() -> None:
    past, token = time.time() - 1, keys.generate().reveal()
    app = make_app(KeyStore(record(token, expires=past)), expires=past)
    ring = configured(app)
    assert await verdict(app, ring, SECRET) == "auth.expired"
    assert await verdict(app, ring, token) == "auth.expired"
    app = make_app(KeyStore(record(token, revoked=past)))
    assert await verdict(app, configured(app), token) == "auth.expired"


async def test_the_stored_digest_is_no_credential() -> None:
    """A-03"""
    token = keys.generate().reveal()
    kept = record(token)
    app = make_app(KeyStore(kept))
    ring = configured(app)
    assert await verdict(app, ring, kept.digest.hex()) == "auth.invalid"
    assert await verdict(app, ring, kept.digest.decode("latin-1")) == "auth.invalid"


async def test_a_store_that_finds_the_wrong_row_lets_nobody_in() -> None:
    class Sloppy(KeyStore):
        async def find_key(self, digest: bytes) -> KeyRecord | None:
            return next(iter(self.records.values()))

    app = make_app(Sloppy(record(keys.generate().reveal())))
    assert await verdict(app, configured(app), "anything") == "auth.invalid"


# --- throttling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.9", "2001:db8::1"])
async def test_ten_failures_then_throttled_but_never_a_valid_key(peer: str, autojump_clock: trio.testing.MockClock) -> None:
    app = make_app()
    ring = configured(app)
    for number in range(10):
        assert await verdict(app, ring, f"{number}-wrong-secret", peer) == "auth.invalid"
    for number in range(10, 1000):
        token = f"{number}-wrong-secret"
        with pytest.raises(ClawError) as caught:
            await clawproxy_auth.authenticate(make_credentials(token, peer=peer, surface=f"s{number % 3}"), ring, app)
        assert caught.value.slug == "auth.throttled"
        assert 0 < (caught.value.details.retry_after_ms or 0) <= 60_000
        if number % 50 == 0:
            assert await verdict(app, ring, SECRET, peer) == "bench"
    await trio.sleep(60.1)
    assert await verdict(app, ring, "again", peer) == "auth.invalid"


async def test_failures_outside_the_window_do_not_add_up(autojump_clock: trio.testing.MockClock) -> None:
    app = make_app()
    ring = configured(app)
    for number in range(40):
        assert await verdict(app, ring, f"{number}-wrong") == "auth.invalid"
        await trio.sleep(6.1)


async def test_one_prefix_from_many_addresses_is_throttled(autojump_clock: trio.testing.MockClock) -> None:
    app = make_app()
    ring = configured(app)
    verdicts = [await verdict(app, ring, f"claw_AbCdEf{number}", f"198.51.100.{number}") for number in range(12)]
    assert verdicts == ["auth.invalid"] * 10 + ["auth.throttled"] * 2
    assert await verdict(app, ring, "claw_other1", "198.51.100.1") == "auth.invalid"


async def test_an_ipv6_network_is_one_address(autojump_clock: trio.testing.MockClock) -> None:
    app = make_app()
    ring = configured(app)
    verdicts = [await verdict(app, ring, f"{number}-wrong", f"2001:db8:1:2::{number:x}") for number in range(11)]
    assert verdicts[-1] == "auth.throttled"
    assert await verdict(app, ring, "0-elsewhere", "2001:db8:1:3::1") == "auth.invalid"


async def test_the_counters_survive_a_reload(autojump_clock: trio.testing.MockClock) -> None:
    app = make_app()
    ring = configured(app)
    for number in range(10):
        await verdict(app, ring, f"{number}-wrong")
    assert await verdict(app, configured(app), "next") == "auth.throttled"
    assert await verdict(app, configured(app, failures=50), "next") == "auth.invalid"


def test_the_counters_are_bounded() -> None:
    throttle = Throttle()
    for number in range(ENTRIES + 500):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"{number:06}-token", 0.0)
    assert len(throttle) == 2 * ENTRIES


def test_a_wait_ends_when_the_oldest_failure_leaves_the_window() -> None:
    throttle = Throttle(limit=2, window=60.0)
    assert [throttle.failed("a", str(n) * 12, float(n)) for n in (1, 2)] == [None, None]
    assert throttle.failed("a", "3" * 12, 3.0) == 58.0


# --- configuration -----------------------------------------------------------------------------------------------------


def test_bad_keys_are_all_reported_at_load() -> None:
    app = make_app()
    app.config = Config(
        keys={
            "a": KeyConfig(secret=SecretRef("env", "CLAW_NOT_SET")),
            "b": KeyConfig(secret=SecretRef("", "has a space")),
            "c": KeyConfig(secret=SecretRef("", SECRET)),
            "d": KeyConfig(secret=SecretRef("", SECRET)),
        }
    )
    with pytest.raises(ConfigError) as caught:
        configured(app)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["keys.a.secret", "keys.b.secret", "keys.d.secret"]
    assert SECRET not in str(caught.value)
    assert "has a space" not in str(caught.value)


def test_no_key_shows_in_a_repr() -> None:
    ring = configured(make_app())
    assert SECRET not in repr(ring)
    assert "pppp" not in repr(ring)


@pytest.mark.parametrize("settings", [{"failures": 0}, {"window": Duration(0.0)}])
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        AuthSettings(**settings)


# --- the vocabulary ----------------------------------------------------------------------------------------------------


def test_generated_keys() -> None:
    made = {keys.generate().reveal() for _ in range(200)}
    assert len(made) == 200
    for token in made:
        assert token.startswith("claw_")
        assert len(token) == 38
        assert token.isascii()
        assert keys.looks_generated(token)


@given(st.integers(5, 37), st.sampled_from(keys.ALPHABET))
def test_one_wrong_character_is_noticed(place: int, other: str) -> None:
    token = keys.generate().reveal()
    typo = token[:place] + other + token[place + 1 :]
    # CRC32 mod 62 finds any single change but for one in 62 of the body's
    if typo != token and place == 37:
        assert not keys.looks_generated(typo)
    assert not keys.looks_generated(token[:place] + token[place + 1 :])


def test_most_typing_errors_are_noticed() -> None:
    noticed = 0
    for _ in range(500):
        token = keys.generate().reveal()
        noticed += not keys.looks_generated(token[:10] + ("0" if token[10] != "0" else "1") + token[11:])
    assert noticed > 450


def test_digest_is_hmac_sha256_and_needs_a_pepper() -> None:
    assert keys.digest(PEPPER, "token") == hmac.new(PEPPER, b"token", "sha256").digest()
    assert keys.digest(b"q" * 32, "token") != keys.digest(PEPPER, "token")
    with pytest.raises(ValueError):
        keys.digest(b"", "token")


def test_display_prefix_is_six_characters() -> None:
    token = keys.generate().reveal()
    assert keys.display_prefix(token) == token[5:11]
    assert keys.display_prefix("short") == "short"


def test_the_pepper_is_made_once(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    pepper = keys.load_or_create_pepper(state)
    assert len(pepper) == 32
    assert keys.load_or_create_pepper(state) == pepper
    assert [path.name for path in state.iterdir()] == ["pepper"]
    assert (state / "pepper").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o077 == 0


def test_racing_processes_get_one_pepper(tmp_path: Path) -> None:
    start, got = threading.Barrier(8), []

    def make() -> None:
        start.wait()
        got.append(keys.load_or_create_pepper(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 8])
def test_a_damaged_pepper_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "pepper").touch(0o600)
    (tmp_path / "pepper").write_text(content)
    with pytest.raises(ConfigError, match="not a pepper"):
        keys.load_or_create_pepper(tmp_path)
    assert (tmp_path / "pepper").read_text() == content


def test_an_open_pepper_is_refused(tmp_path: Path) -> None:
    keys.load_or_create_pepper(tmp_path)
    (tmp_path / "pepper").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load_or_create_pepper(tmp_path)


SECRET_NAMES = {"token", "secret", "mark", "digest", "pepper", "check", "credential", "password"}


def names_compared(source: str) -> list[str]:
    """Names of secrets that stand beside `==`, `!=` or `in`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops):
            for side in (node.left, *node.comparators):
                found += [
                    name
                    for part in ast.walk(side)
                    for name in [part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""]
                    if name in SECRET_NAMES
                ]
    return found


def test_no_plain_comparison_touches_a_secret() -> None:
    """A-01, in the source."""
    assert names_compared("if key.digest == mark: pass") == ["digest", "mark"]  # the test can fail
    assert keys.__file__ is not None
    files = [Path(keys.__file__), Path(admin_keys.__file__), *Path(clawproxy_auth.__file__).parent.glob("*.py")]
    assert len(files) == 9
    for path in files:
        assert names_compared(path.read_text("utf-8")) == [], path.name


def test_principals_are_not_shared_between_generations() -> None:
    app = make_app()
    first, second = configured(app), configured(app)
    mark = keys.digest(PEPPER, SECRET)
    assert first.find(mark) == second.find(mark)
    assert first.find(mark[:-1] + b"\0") is None
    assert evolve(first).find(mark) is not None
