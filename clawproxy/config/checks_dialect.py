"""What a provider's `profile`, `api_version` and `websocket` must fulfil, and Azure's addresses.

Rule: a key that its dialect would ignore is refused. Plugins' dialects read them as they like.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from clawproxy.config.findings import Findings
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.schema import ProviderConfig
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown

PROFILES = (
    "default", "openai", "azure", "azure_entra", "xroute", "vllm", "openrouter", "groq", "mistral", "deepseek", "bedrock",
    "ollama_compat", "openclaw",
)  # fmt: skip
"""The rows of `dialects.profiles`, which this layer can not import; a test holds the two together."""
OPENAI_FAMILY = ("openai_chat", "azure")
VERSIONED = ("azure", "anthropic")
"""The dialects that have an `api_version`."""
WITH_SOCKETS = "openai_responses"
MOST_DRAINED = 600.0
"""Seconds an answer may be read on for nobody."""
_AZURE = ("azure", "azure_entra")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def check_dialect_options(provider: ProviderConfig, path: KeyPath, known: bool, found: Findings) -> None:
    """`known`: whether the dialect is one of the gateway's own."""
    family = provider.dialect in OPENAI_FAMILY
    profile, version = provider.profile, provider.api_version
    if profile is not None:
        if family and profile not in PROFILES:
            found.wrong((*path, "profile"), f'"{shown(profile)}" is no known profile; {suggest(profile, PROFILES)}')
        elif known and not family:
            found.wrong((*path, "profile"), f'has no meaning for dialect = "{provider.dialect}"; remove it')
        elif provider.dialect == "azure" and profile not in _AZURE:
            found.wrong((*path, "profile"), f'"{profile}" is not Azure\'s; write one of {", ".join(_AZURE)}, or leave it out')
    if provider.websocket and provider.dialect != WITH_SOCKETS:
        found.wrong((*path, "websocket"), f'has no meaning for dialect = "{provider.dialect}"; only {WITH_SOCKETS} has that mode')
    _check_drain(provider, path, found)
    azure = provider.dialect == "azure" or (family and profile in _AZURE)
    if version is not None:
        if known and not azure and provider.dialect not in VERSIONED:
            found.wrong((*path, "api_version"), f'has no meaning for dialect = "{provider.dialect}"; remove it')
        elif not _VERSION.fullmatch(version):
            found.wrong((*path, "api_version"), f'"{shown(version)}" is no version; write it like "2024-10-21"')
    if azure and provider.base_url is not None:
        _check_azure(provider.base_url, version, (*path, "base_url"), found)


def _check_drain(provider: ProviderConfig, path: KeyPath, found: Findings) -> None:
    if provider.on_cancel != "drain":
        for name in ("drain_time", "drain_bytes"):
            if getattr(provider, name) != getattr(ProviderConfig(), name):
                found.wrong((*path, name), 'has no meaning without on_cancel = "drain"; write that too, or remove it')
        return
    if provider.websocket:
        sentence = '"drain" can not be had with websocket = true: an answer there is ended by a message; remove one of the two'
        found.wrong((*path, "on_cancel"), sentence)
    if provider.base_url is None and provider.dialect == "scripted":
        found.wrong((*path, "on_cancel"), '"drain" has no meaning for the scripted provider in this process; remove it')
    if not 0 < provider.drain_time <= MOST_DRAINED:
        found.wrong((*path, "drain_time"), f'must be above "0s" and at most "{MOST_DRAINED // 60:.0f}m"')
    if provider.drain_bytes < 1:
        found.wrong((*path, "drain_bytes"), 'must be at least 1; for none at all write on_cancel = "cancel"')


def _check_azure(url: str, version: str | None, where: KeyPath, found: Findings) -> None:
    try:
        below = urlsplit(url).path.rstrip("/")
    except ValueError:  # said already
        return
    if "/deployments" in below:
        found.wrong(where, "names a deployment; end it with the host: a route's `model` is the deployment's name")
    elif version is not None and below.endswith("/v1"):
        found.wrong(where, "ends with /v1, which has no api_version; end it with the host, or leave api_version out")
