"""`clawproxy keys`: client keys in the store, with the gateway up or down.

Rule 1: a key is shown once, alone on stdout (or in the one JSON object there); what is stored is its digest.
Rule 2: no provider's secret is resolved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from clawproxy.cli import say
from clawproxy.cli.common import config_option, load_config, pepper, printable, state_dir
from clawproxy.config import KeyConfig, fits
from clawproxy.config.load import Loaded
from clawproxy.config.units import parse_duration
from clawproxy.errors import ConfigError
from clawproxy.ops.keyrecords import (
    MOST_OVERLAP,
    NAME,
    booked_under,
    described,
    moment_of,
    new_record,
    newest,
    state_of,
    successor,
)
from clawproxy.ops.keyrecords import when as _when
from clawproxy.secrets import Secret
from clawproxy.stores.base import KeyRecord, Store

T = TypeVar("T")
expires_option = click.option("--expires", help='A duration ("30d") or a date and time with its offset ("2027-01-31T00:00:00Z").')
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group("keys")
def command() -> None:
    """Make, list, rotate and revoke client keys. A running gateway follows within 5 seconds."""


@command.command()
@click.argument("name")
@config_option
@click.option("--user", help="Whose requests these are.")
@click.option("--team", help="Whose budgets and policies hold for them, too.")
@click.option("--app", help="The application they come from.")
@click.option("--model", "models", multiple=True, help='A model it may use, or "prefix*"; may be repeated. All, where not given.')
@click.option("--role", "roles", multiple=True, help="One of [roles]; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="A word for policies, or region:NAME; may be repeated.")
@click.option("--may-assert", is_flag=True, help="The client's own `user` and `app` count.")
@expires_option
@json_option
def create(
    name: str, config_file: Path | None, models: tuple[str, ...], expires: str | None, as_json: bool, **fields: Any
) -> None:
    """Make a key called NAME and print it, once."""
    if not NAME.fullmatch(name):
        raise ConfigError([f"NAME: {name!r} is no name for a key; use letters, digits, `_`, `.`, `@` and `-`, at most 64"])
    until = None if expires is None else parse_expires(expires, time.time())
    loaded, plugins = load_config(config_file)
    if name in loaded.config.keys:
        raise ConfigError([f"NAME: `{name}` is a static key of {loaded.config.path or 'the environment'}; choose another name"])
    if (place := booked_under(name, loaded.config)) is not None:
        raise ConfigError([f"NAME: requests of {place} are booked under `{name}`; choose another name"])
    problems = [f'--role: "{printable(role)}" is not in [roles] of {loaded.config.path}' for role in fields["roles"]
                if loaded.config.roles and role not in loaded.config.roles]  # fmt: skip
    problems += [f'--model: "{printable(model)}" is no pattern; write a model\'s name, "prefix*" or "*"'
                 for model in models if not model or "*" in model[:-1]]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    for model in models:
        if loaded.config.models and not any(fits(name, (model,)) for name in loaded.config.models):
            say(f'warning: --model: "{printable(model)}" fits none of [models] of {loaded.config.path}')
    secret, record = new_record(name, pepper(loaded, plugins), models=models or ("*",), expires=until, **fields)

    async def work(store: Store) -> None:
        if any(known.name == name and known.revoked is None for known in await store.keys()):
            raise ConfigError([f"NAME: there is a key `{name}` already; revoke it first, or choose another name"])
        await store.add_key(record)

    with_store(loaded, work)
    _show_once(secret, record, f"Key `{name}` made.", as_json)


@command.command()
@click.argument("name")
@config_option
@click.option("--overlap", default="24h", show_default=True, help='How long the old secret works beside the new one; "0s": not.')
@expires_option
@json_option
def rotate(name: str, config_file: Path | None, overlap: str, expires: str | None, as_json: bool) -> None:
    """Give the key NAME a new secret and print it, once. All else of the key stays; the old secret ends after the overlap."""
    now = time.time()
    try:
        seconds = 0.0 if overlap.strip() in ("0", "0s") else parse_duration(overlap)
        if not seconds <= MOST_OVERLAP:
            raise ValueError(f'"{overlap}" is too long; 90d are the most')
    except ValueError as error:
        raise ConfigError([f"--overlap: {error}"]) from None
    loaded, plugins = load_config(config_file)
    secret_pepper = pepper(loaded, plugins)
    until = None if expires is None else parse_expires(expires, now)

    async def work(store: Store) -> tuple[Secret, KeyRecord] | None:
        known = newest(await store.keys(), name, now)
        if known is None:
            return None
        secret, record = successor(known, secret_pepper, until)
        return (secret, record) if await store.rotate_key(record, now + seconds) else None

    made = with_store(loaded, work)
    if made is None:
        raise ConfigError([_no_such_key(name, loaded)])
    _show_once(*made, f"Key `{name}` has a new secret; the old one works until {_when(now + seconds)}.", as_json)


@command.command(short_help="All that is known of the key NAME.")
@click.argument("name")
@config_option
@json_option
def show(name: str, config_file: Path | None, as_json: bool) -> None:
    """All that is known of the key NAME, one entry for each of its secrets; never the secrets."""
    loaded, _ = load_config(config_file)

    async def work(store: Store) -> Sequence[KeyRecord]:
        return await store.keys()

    now = time.time()
    rows = [described(record, now) for record in with_store(loaded, work) if record.name == name]
    if name in loaded.config.keys:
        rows.append(_static(name, loaded.config.keys[name], now))
    if not rows:
        raise ConfigError([_no_such_key(name, loaded)])
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        width = max(map(len, row))
        click.echo("\n".join(f"{word.ljust(width)}  {_cell(value)}" for word, value in row.items()) + "\n")


@command.command("list", short_help="List the keys of store and configuration.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(config_file: Path | None, as_json: bool) -> None:
    """List the keys in the store, and the static ones of the configuration."""
    loaded, _ = load_config(config_file)

    async def work(store: Store) -> Sequence[KeyRecord]:
        return await store.keys()

    now = time.time()
    rows = [described(record, now) for record in with_store(loaded, work)]
    rows += [_static(name, key, now) for name, key in loaded.config.keys.items()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("No keys yet: `clawproxy keys create NAME` makes one.")
        return
    columns = ("name", "state", "begins", "created", "expires", "user", "team", "app", "roles", "models")
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
        raise ConfigError([_no_such_key(name, loaded, good=False)])
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
        return moment_of(text, now)
    except ValueError as error:
        raise ConfigError([f"--expires: {error}"]) from None


def _show_once(secret: Secret, record: KeyRecord, said: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": secret.reveal(), **described(record, record.created)}, indent=1))
    else:
        click.echo(secret.reveal())
    say(f"{said} It is not shown again.")


def _no_such_key(name: str, loaded: Loaded, *, good: bool = True) -> str:
    if name in loaded.config.keys:
        hint = "it is in the configuration; change it there" if good else "it is in the configuration; remove it there"
    else:
        hint = "`clawproxy keys list` names them"
    return f"NAME: there is no key `{printable(name)}` in the store; {hint}"


def _static(name: str, key: KeyConfig, now: float) -> dict[str, Any]:
    return {
        "name": name,
        "state": state_of(None, key.expires, now),
        "from": "configuration",
        "expires": _when(key.expires),
        "user": key.user,
        "team": key.team,
        "app": key.app,
        "roles": list(key.roles),
        "models": list(key.models),
    }


def _cell(value: Any) -> str:
    return "-" if value in (None, []) else printable(", ".join(value) if isinstance(value, list) else str(value))
