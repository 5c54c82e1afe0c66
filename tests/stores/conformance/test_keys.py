"""What every store does with client keys."""

from __future__ import annotations

from collections.abc import Callable

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
