"""What every store does with client keys."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from clawproxy.stores.base import KeyRecord, Store

AKey = Callable[..., KeyRecord]


async def test_a_key_comes_back_field_by_field(store: Store, a_key: AKey) -> None:
    key = a_key(
        expires=9.5, user="u", team="t", app="a", roles=("admin", "dev"), tags=("x",), models=("gpt-*", "claude"), may_assert=True
    )
    await store.add_key(key)
    assert await store.find_key(key.digest) == key
    assert await store.keys() == [key]


async def test_an_unknown_digest_finds_nothing(store: Store, a_key: AKey) -> None:
    await store.add_key(a_key())
    assert await store.find_key(b"\0" * 32) is None
    assert await store.find_key(b"") is None


async def test_adding_is_idempotent_by_id(store: Store, a_key: AKey) -> None:
    key = a_key()
    await store.add_key(key)
    await store.add_key(key)
    assert await store.keys() == [key]


async def test_one_digest_is_one_key(store: Store, a_key: AKey) -> None:
    key = a_key()
    await store.add_key(key)
    with pytest.raises(ValueError, match="digest"):
        await store.add_key(a_key(digest=key.digest))
    assert await store.keys() == [key]


async def test_revoking_keeps_the_first_time(store: Store, a_key: AKey) -> None:
    key = a_key("bob")
    await store.add_key(key)
    await store.add_key(a_key("ann"))
    assert await store.revoke_key("bob", 10.0)
    assert await store.revoke_key("bob", 20.0)
    found = await store.find_key(key.digest)
    assert found is not None
    assert found.revoked == 10.0
    assert {key.name: key.revoked for key in await store.keys()} == {"ann": None, "bob": 10.0}


async def test_revoking_nobody_says_so(store: Store) -> None:
    assert not await store.revoke_key("nobody", 1.0)


async def test_a_name_may_be_used_again_after_revoking(store: Store, a_key: AKey) -> None:
    old, new = a_key("bob", created=1.0), a_key("bob", created=2.0)
    await store.add_key(old)
    await store.revoke_key("bob", 10.0)
    await store.add_key(new)
    assert [key.revoked for key in await store.keys()] == [10.0, None]
    assert await store.revoke_key("bob", 20.0)
    assert [key.revoked for key in await store.keys()] == [10.0, 20.0]


async def test_what_a_key_made_ends_with_it(store: Store, a_key: AKey) -> None:
    for key in (a_key(name="boss"), a_key(name="kid", maker="boss"), a_key(name="other", maker="ann")):
        await store.add_key(key)
    assert await store.revoke_key("boss", 10.0)
    assert {key.name: key.revoked for key in await store.keys()} == {"boss": 10.0, "kid": 10.0, "other": None}


async def test_a_rotation_adds_a_secret_and_gives_the_others_an_end(store: Store, a_key: AKey) -> None:
    first, soon, gone = a_key(name="bob", maker="m"), a_key(name="bob", expires=50.0), a_key(name="bob", revoked=1.0)
    for key in (first, soon, gone, a_key(name="ann")):
        await store.add_key(key)
    fresh = a_key(name="bob", created=40.0, expires=500.0)
    for _ in range(2):  # idempotent by id
        assert await store.rotate_key(fresh, 100.0)
    assert {key.id: (key.expires, key.revoked) for key in await store.keys() if key.name == "bob"} == {
        first.id: (100.0, None),
        soon.id: (50.0, None),
        gone.id: (None, 1.0),
        fresh.id: (500.0, None),
    }
    assert [key.expires for key in await store.keys() if key.name == "ann"] == [None]
    found = await store.find_key(fresh.digest)
    assert found == fresh


async def test_there_is_nothing_to_rotate_where_no_key_is_good(store: Store, a_key: AKey) -> None:
    await store.add_key(a_key(name="bob", expires=30.0))
    await store.add_key(a_key(name="bob", revoked=1.0))
    before = await store.keys()
    assert not await store.rotate_key(a_key(name="bob", created=40.0), 100.0)
    assert not await store.rotate_key(a_key(name="nobody", created=40.0), 100.0)
    assert await store.keys() == before


async def test_a_rotation_with_a_digest_that_is_taken_changes_nothing(store: Store, a_key: AKey) -> None:
    known, other = a_key(name="bob"), a_key(name="ann")
    for key in (known, other):
        await store.add_key(key)
    with pytest.raises(ValueError, match="digest"):
        await store.rotate_key(attrs.evolve(a_key(name="bob"), digest=other.digest), 100.0)
    assert [key.expires for key in await store.keys()] == [None, None]
