"""The first client key, where nobody configured any: made once, shown once.

Rule: on a terminal it is printed; else it is written to `state_dir/first-key`, mode 0600. Only its digest is stored. It never
goes to stdout or into the log.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import attrs
import trio

from clawproxy.cli import say
from clawproxy.cli.common import pepper, state_dir
from clawproxy.config import Config, KeyConfig, SecretRef
from clawproxy.errors import ConfigError
from clawproxy.ops.keyrecords import new_record
from clawproxy.ops.logs import log_event

if TYPE_CHECKING:
    from clawproxy.config.load import Loaded
    from clawproxy.pipeline import Plugins
    from clawproxy.secrets import Secret

NAME = "first"


def first_key(loaded: Loaded, plugins: Plugins, *, ephemeral: bool) -> Config:
    """The configuration, with a key for it where there is neither a file nor any key.

    Raises:
        ConfigError: the key would be lost, for nothing is kept and nobody looks.
    """
    config = loaded.config
    if config.path is not None or config.keys:
        return config
    terminal = sys.stderr.isatty()
    if not ephemeral:
        secret = trio.run(_stored, loaded, plugins)
        if secret is not None:
            _show(secret, loaded, terminal)
        return config
    if not terminal:
        raise ConfigError(["CLAWPROXY_KEY: is not set, and with --ephemeral nobody would know a key made now; set it"])
    from clawproxy.keys import generate

    secret = generate()
    _show(secret, loaded, terminal)
    return attrs.evolve(config, keys={NAME: KeyConfig(SecretRef("", secret.reveal()))})


async def _stored(loaded: Loaded, plugins: Plugins) -> Secret | None:
    """A key made now and stored as a digest; None where the store has one already."""
    from clawproxy.stores.sqlite import SqliteStore

    secret_pepper = pepper(loaded, plugins)
    store = SqliteStore.open_tool(state_dir(loaded))
    try:
        if await store.keys():
            return None
        secret, record = new_record(NAME, secret_pepper)
        await store.add_key(record)
        return secret
    finally:
        with trio.move_on_after(5, shield=True):
            await store.aclose()


def _show(secret: Secret, loaded: Loaded, terminal: bool) -> None:
    if terminal:
        say(f"\n  client key (shown once): {secret.reveal()}\n")
        return
    path = state_dir(loaded) / "first-key"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.reveal() + "\n")
    log_event("keys.first", "info", key=NAME, path=str(path))
