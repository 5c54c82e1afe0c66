"""From a `SecretRef` to its `Secret`, as late as possible: only `serve` and `check` do it, so that `keys` works without them.

Rule 1: no sentence made here holds a secret, or a part of one.
Rule 2: a secret goes into headers and HMACs: one line, no control characters, at most 64 KiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from attrs import fields, has

from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import dotted
from clawproxy.config.schema import FETCHED, Config, SecretRef
from clawproxy.config.structure import listed
from clawproxy.config.units import shown
from clawproxy.errors import ConfigError
from clawproxy.secrets import Secret

Schemes = Mapping[str, Callable[[str], str]]
NO_SCHEMES: Schemes = MappingProxyType({})
NO_SETTINGS: Mapping[str, object] = MappingProxyType({})
_MOST = 64 * 1024
SHORT_KEY = 20
"""Characters below which a static client key is worth a warning: 20 of base64 are 120 bits."""


def resolve_secret(
    ref: SecretRef,
    schemes: Schemes = NO_SCHEMES,
    *,
    needed_by: str = "",
    environ: Mapping[str, str] | None = None,
) -> Secret:
    """The secret a reference stands for.

    Args:
        schemes: what plugins registered, beside `env` and `file`; `resolve(value)` raises LookupError with a sentence.
        needed_by: the configuration key, for the error.

    Raises:
        ConfigError: one problem, `KEY: what is wrong; what would be right`.
    """
    try:
        value = _value(ref, schemes, os.environ if environ is None else environ)
        if not value:
            raise LookupError("is empty; put the secret there")
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in value):
            raise LookupError("holds a line break or another control character; put the secret alone on one line")
    except LookupError as error:
        sentence = str(error.args[0] if error.args else error)
        where = f"{ref.scheme}:{shown(ref.value)} " if ref.scheme in ("env", "file") else f"{ref.scheme}: " if ref.scheme else ""
        raise ConfigError([f"{needed_by}: {where}{sentence}" if needed_by else f"{where}{sentence}"]) from None
    return Secret(value)


def _value(ref: SecretRef, schemes: Schemes, environ: Mapping[str, str]) -> str:
    if ref.scheme == "":
        return ref.value
    if ref.scheme == "env":
        if ref.value not in environ:
            raise LookupError("is not set; set the variable, or name another")
        return environ[ref.value].strip()
    if ref.scheme == "file":
        return _file(ref.value)
    if ref.scheme in schemes:
        return schemes[ref.scheme](ref.value)
    if ref.scheme in FETCHED:
        raise LookupError("is only for a provider's api_key or api_keys; use env: or file: here")
    raise LookupError(f"is no known kind of secret; known are {listed(['env', 'file', *sorted(schemes)])}")


def _file(name: str) -> str:
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(_MOST + 1)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise LookupError(f"can not be read ({reason}); put the secret there, readable for this user") from None
    if len(data) > _MOST:
        raise LookupError("holds more than 64 KiB; name a file that holds only the secret")
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise LookupError("is not UTF-8 text; name a file that holds only the secret") from None


def references(config: Config) -> Iterator[tuple[KeyPath, SecretRef]]:
    """Every reference in a configuration, with its key."""
    for name, provider in config.providers.items():
        if provider.api_key is not None:
            yield ("providers", name, "api_key"), provider.api_key
        for index, credential in enumerate(provider.api_keys):
            yield ("providers", name, "api_keys", index), credential
        for part in ("client_secret", "refresh_token"):
            secret: SecretRef | None = getattr(provider.oauth, part, None)
            if secret is not None:
                yield ("providers", name, "oauth", part), secret
    for name, key in config.keys.items():
        if key.secret is not None:
            yield ("keys", name, "secret"), key.secret
    for name in ("url", "secret"):
        alerted: SecretRef | None = getattr(config.alerts, name)
        if alerted is not None:
            yield ("alerts", name), alerted
    for name in ("admin_token", "pepper"):
        ref: SecretRef | None = getattr(config.server, name)
        if ref is not None:
            yield ("server", name), ref


def _in_section(value: object) -> Iterator[SecretRef]:
    """Those in a plugin's settings, wherever its class has them."""
    kind = type(value)
    if isinstance(value, SecretRef):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _in_section(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _in_section(each)
    elif has(kind):
        for part in fields(kind):
            if part.init:  # the others are the class's own, and no settings
                yield from _in_section(getattr(value, part.name))


def files_read(config: Config, settings: Mapping[str, object] = NO_SETTINGS) -> set[Path]:
    """The files whose content is part of the configuration: itself, secrets, certificates.

    Args:
        settings: plugins' sections, whose secrets count too.
    """
    tls = config.server.tls
    refs = [*(ref for _, ref in references(config)), *_in_section(settings)]
    named: list[Path | None] = [Path(ref.value) for ref in refs if ref.scheme == "file"]
    for provider in config.providers.values():
        named.append(provider.ca_file)
        if provider.tls is not None:
            named += [provider.tls.certificate, provider.tls.key]
    if tls is not None:
        named += [tls.certificate, tls.key, tls.client_ca]
        named += [file for each in tls.names for file in (each.certificate, each.key)]
    return {file for file in (*named, config.path) if file is not None}


def check_secrets(
    config: Config, schemes: Schemes = NO_SCHEMES, environ: Mapping[str, str] | None = None
) -> tuple[list[tuple[KeyPath, str]], list[tuple[KeyPath, str]]]:
    """Resolve every secret once. Returns problems and warnings as `(key, sentence)`."""
    problems: list[tuple[KeyPath, str]] = []
    warnings: list[tuple[KeyPath, str]] = []
    found: dict[str, Secret] = {}
    operator: Secret | None = None
    for path, ref in references(config):
        if ref.scheme in FETCHED and path[0] == "providers" and path[2] != "oauth":
            continue  # had when it is needed, by `upstream.fetched`; how it is written was checked
        try:
            secret = resolve_secret(ref, schemes, environ=environ)
        except ConfigError as error:
            problems.append((path, error.problems[0]))
            continue
        if path == ("server", "admin_token"):
            operator = secret
            if len(secret.reveal()) < SHORT_KEY:
                warnings.append(
                    (path, f"has fewer than {SHORT_KEY} characters and can be guessed; use {2 * SHORT_KEY} random ones")
                )
        if path[0] == "keys":
            found[str(path[1])] = secret
            if len(secret.reveal()) < SHORT_KEY:
                warnings.append((path, f"has fewer than {SHORT_KEY} characters and can be guessed; use `clawproxy keys create`"))
    for one, two in combinations(found, 2):
        if found[one] == found[two]:
            first = dotted(("keys", one, "secret"))
            problems.append((("keys", two, "secret"), f"is the same secret as {first}; give each key its own"))
    for name, secret in found.items():
        if secret == operator:  # who administers calls no models, and the other way round (docs/authorization.md)
            problems.append((("keys", name, "secret"), "is the same secret as server.admin_token; give each its own"))
    return problems, warnings
