"""`clawproxy keys`: client keys in the store, with the gateway up or down.

Rule 1: a key is shown once, alone on stdout; what is stored is its digest.
Rule 2: no provider's secret is resolved.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from clawproxy.cli import say
from clawproxy.cli.common import config_option, load_config, pepper, printable, state_dir
from clawproxy.config.load import Loaded
from clawproxy.config.units import parse_duration
from clawproxy.context import new_id
from clawproxy.errors import ConfigError
from clawproxy.keys import digest, display_prefix, generate
from clawproxy.secrets import Secret
from clawproxy.stores.base import KeyRecord, Store

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


def new_record(name: str, secret_pepper: bytes, **fields: Any) -> tuple[Secret, KeyRecord]:
    """A new key and what is stored of it."""
    secret = generate()
    token = secret.reveal()
    return secret, KeyRecord(new_id(), name, digest(secret_pepper, token), display_prefix(token), time.time(), **fields)


@click.group("keys")
def command() -> None:
    """Make, list and revoke client keys. A running gateway follows within 5 seconds."""


@command.command()
@click.argument("name")
@config_option
@click.option("--user", help="Whose requests these are.")
@click.option("--team")
@click.option("--app")
@click.option("--model", "models", multiple=True, help='A model it may use, or "prefix*"; may be repeated. All, where not given.')
@click.option("--role", "roles", multiple=True)
@click.option("--tag", "tags", multiple=True)
@click.option("--may-assert", is_flag=True, help="The client's own `user` and `app` count.")
@click.option("--expires", help='A duration ("30d") or a date and time with its offset ("2027-01-31T00:00:00Z").')
def create(name: str, config_file: Path | None, models: tuple[str, ...], expires: str | None, **fields: Any) -> None:
    """Make a key called NAME and print it, once."""
    if not NAME.fullmatch(name):
        raise ConfigError([f"NAME: {name!r} is no name for a key; use letters, digits, `_`, `.`, `@` and `-`, at most 64"])
    until = None if expires is None else parse_expires(expires, time.time())
    loaded, plugins = load_config(config_file)
    if name in loaded.config.keys:
        raise ConfigError([f"NAME: `{name}` is a static key of {loaded.config.path or 'the environment'}; choose another name"])
    secret, record = new_record(name, pepper(loaded, plugins), models=models or ("*",), expires=until, **fields)

    async def work(store: Store) -> None:
        if any(known.name == name and known.revoked is None for known in await store.keys()):
            raise ConfigError([f"NAME: there is a key `{name}` already; revoke it first, or choose another name"])
        await store.add_key(record)

    with_store(loaded, work)
    click.echo(secret.reveal())
    say(f"Key `{name}` made. It is not shown again.")


@command.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(config_file: Path | None, as_json: bool) -> None:
    """List the keys in the store, and the static ones of the configuration."""
    loaded, _ = load_config(config_file)

    async def work(store: Store) -> Sequence[KeyRecord]:
        return await store.keys()

    now = time.time()
    rows = [_row(record, now) for record in with_store(loaded, work)]
    rows += [
        {"name": name, "state": _state(None, key.expires, now), "from": "configuration", "expires": _when(key.expires),
         "user": key.user, "team": key.team, "app": key.app, "models": list(key.models)}
        for name, key in loaded.config.keys.items()
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("No keys yet: `clawproxy keys create NAME` makes one.")
        return
    columns = ("name", "state", "begins", "created", "expires", "user", "team", "app", "models")
    table = [columns, *(tuple(_cell(row.get(column)) for column in columns) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command()
@click.argument("name")
@config_option
def revoke(name: str, config_file: Path | None) -> None:
    """Revoke the key NAME. It stops within 5 seconds."""
    loaded, _ = load_config(config_file)

    async def work(store: Store) -> bool:
        return await store.revoke_key(name, time.time())

    if not with_store(loaded, work):
        hint = "it is in the configuration; remove it there" if name in loaded.config.keys else "`clawproxy keys list` names them"
        raise ConfigError([f"NAME: there is no key `{printable(name)}` in the store; {hint}"])
    click.echo(f"Key `{name}` revoked.")


def with_store(loaded: Loaded, work: Callable[[Store], Awaitable[T]]) -> T:
    """Run `work` with the store of the state directory. Raises ConfigError, ClawError("store_unavailable")."""
    from clawproxy.stores.sqlite import SqliteStore

    async def inner() -> T:
        store = SqliteStore.open_tool(state_dir(loaded))
        try:
            return await work(store)
        finally:
            with trio.move_on_after(5, shield=True):
                await store.aclose()

    return trio.run(inner)


def parse_expires(text: str, now: float) -> float:
    """Unix time. Raises ConfigError."""
    try:
        if re.match(r"[0-9]{4}-", text):
            moment = datetime.datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise ValueError(f'"{text}" has no offset from UTC; write it like 2027-01-31T00:00:00Z')
            until = moment.timestamp()
        else:
            until = now + parse_duration(text)
        if not now < until < 1e11:
            raise ValueError(f'"{text}" is not in the future; leave --expires out for a key that does not expire')
    except ValueError as error:
        raise ConfigError([f"--expires: {error}"]) from None
    return until


def _row(record: KeyRecord, now: float) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": _state(record.revoked, record.expires, now),
        "from": "store",
        "begins": record.prefix,
        "created": _when(record.created),
        "expires": _when(record.expires),
        "user": record.user,
        "team": record.team,
        "app": record.app,
        "models": list(record.models),
    }


def _state(revoked: float | None, expires: float | None, now: float) -> str:
    return "revoked" if revoked is not None else "expired" if expires is not None and expires <= now else "good"


def _when(moment: float | None) -> str | None:
    return None if moment is None else datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cell(value: Any) -> str:
    return "-" if value is None else printable(", ".join(value) if isinstance(value, list) else str(value))
