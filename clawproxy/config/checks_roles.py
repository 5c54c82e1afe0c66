"""The checks of `[roles]`, and of the roles that keys and issuers name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clawproxy.config.findings import Findings, Names
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.residency import known_regions
from clawproxy.config.roles import ACTIONS, RoleConfig
from clawproxy.config.schema import Config
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,63}")


def check_roles(config: Config, names: Names, found: Findings) -> None:
    for name, role in config.roles.items():
        _check_role(name, role, config, names, found)
    if not config.roles:
        return
    for key, settings in config.keys.items():
        _named(settings.roles, ("keys", key, "roles"), config.roles, found)
    auth = config.plugins.get("auth", {})
    issuers = auth.get("issuers")
    for issuer, table in issuers.items() if isinstance(issuers, Mapping) else ():
        _named(_granted(table), ("plugins", "auth", "issuers", issuer, "grants"), config.roles, found)
    _named(_granted(auth.get("introspection")), ("plugins", "auth", "introspection", "grants"), config.roles, found)


def _granted(table: Any) -> list[str]:
    """The plugin's own class finds what is wrong with its types."""
    value = table.get("grants") if isinstance(table, Mapping) else None
    return [each for each in value if isinstance(each, str)] if isinstance(value, list | tuple) else []


def _check_role(name: str, role: RoleConfig, config: Config, names: Names, found: Findings) -> None:
    path: KeyPath = ("roles", name)
    if not _NAME.fullmatch(name):
        found.wrong(path, "is no name for a role; use letters, digits, `_`, `.`, `:`, `@`, `/` and `-`, at most 64")
    if not role.models and not role.make_keys:
        found.warn(path, 'allows nothing: it names no models; write models = ["NAME"], or ["*"] for all')
    regions = known_regions(config)
    _known(role.models, (*path, "models"), names.models or None, "in [models]", found)
    _known(role.actions, (*path, "actions"), ACTIONS, "an action", found)
    _known(role.providers, (*path, "providers"), names.providers, "a provider", found)
    _known(role.regions, (*path, "regions"), regions, "the region of any route", found)
    if role.max_output is not None and role.max_output < 1:
        found.wrong((*path, "max_output"), f"{role.max_output} leaves no answer; write 1 or more")


def _known(words: Collection[str], path: KeyPath, known: Collection[str] | None, what: str, found: Findings) -> None:
    for word in words:
        if not word or "*" in word[:-1]:
            found.wrong(path, f'"{shown(word)}" is no pattern; write a whole name, "prefix*" or "*"')
        elif word == "*" or known is None:
            continue
        elif not any(each.startswith(word[:-1]) if word.endswith("*") else each == word for each in known):
            found.wrong(path, f'"{shown(word)}" is not {what}; {suggest(word, sorted(known))}')


def _named(roles: Iterable[str], path: KeyPath, known: Mapping[str, RoleConfig], found: Findings) -> None:
    for index, role in enumerate(roles):
        if role not in known:
            found.wrong((*path, index), f'"{shown(role)}" is not in [roles]; {suggest(role, sorted(known))}')
