"""Configuration from the environment: where the file is, the settings that override it, and the providers that are found
when there is no file.

Rule 1: a variable wins over the file. An empty variable counts as unset.
Rule 2: `CLAWPROXY__SECTION__KEY` reaches every key; a name that fits none is an error. Other `CLAWPROXY_*` names are not ours
        to refuse (Kubernetes sets `CLAWPROXY_SERVICE_HOST` for a service of that name); one that looks like a slip is a warning.
Rule 3: providers come from the environment only where there is no file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.scalars import EnvText
from clawproxy.errors import ConfigError

DEFAULT_FILE = "clawproxy.toml"

PROVIDERS: Mapping[str, tuple[str, str]] = {
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1"),
    "anthropic": ("ANTHROPIC_API_KEY", "https://api.anthropic.com/v1"),
    "gemini": ("GEMINI_API_KEY", "https://generativelanguage.googleapis.com/v1beta"),
    "xroute": ("XROUTE_API_KEY", "https://api.xroute.ai/openai/v1"),
    "groq": ("GROQ_API_KEY", "https://api.groq.com/openai/v1"),
    "mistral": ("MISTRAL_API_KEY", "https://api.mistral.ai/v1"),
    "deepseek": ("DEEPSEEK_API_KEY", "https://api.deepseek.com/v1"),
    "openrouter": ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
}
"""Provider: its variable and its base URL."""
OWN_DIALECT = frozenset({"anthropic", "gemini"})
"""Those that are spoken to in their own format, which has the same name. The others speak OpenAI's."""

SHORTCUTS: Mapping[str, KeyPath] = {
    "CLAWPROXY_LISTEN": ("server", "listen"),
    "CLAWPROXY_ADMIN": ("server", "admin"),
    "CLAWPROXY_STATE_DIR": ("server", "state_dir"),
}
OWN_NAMES = ("CLAWPROXY_CONFIG", "CLAWPROXY_KEY", *SHORTCUTS)
ENVIRONMENT_KEY = "environment"
"""The name of the client key that `CLAWPROXY_KEY` holds."""


@frozen
class Overlay:
    """Raw settings and, for each, the variable it came from."""

    raw: dict[str, Any] = field(factory=dict)
    origins: dict[KeyPath, str] = field(factory=dict)
    warnings: list[str] = field(factory=list)
    problems: list[str] = field(factory=list)


def find_config(option: Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    """`--config`, else `$CLAWPROXY_CONFIG`, else `./clawproxy.toml` if it is there, else None.

    Raises:
        ConfigError: the file that was asked for is not there.
    """
    for path, asked in ((option, "--config"), (environ.get("CLAWPROXY_CONFIG") or None, "CLAWPROXY_CONFIG")):
        if path is not None:
            if not Path(path).exists():
                raise ConfigError([f"{path}: there is no such file; {asked} must name a configuration file"])
            return Path(path)
    return Path(DEFAULT_FILE) if (folder / DEFAULT_FILE).is_file() else None


def ollama_base(host: str) -> str | None:
    """The base URL of an Ollama server for what OLLAMA_HOST may hold, or None where it makes no sense.

    As Ollama itself reads it: without a scheme the port is 11434, with `http://` 80, with `https://` 443. The address a
    server listens on everywhere with (0.0.0.0) means this machine here.
    """
    scheme, mark, rest = host.strip().rpartition("://")
    parts = urlsplit(f"//{rest}")
    try:
        port, name = parts.port, parts.hostname or "127.0.0.1"
    except ValueError:
        return None
    if scheme not in ("", "http", "https"):
        return None
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # noqa: S104
    name = f"[{name}]" if ":" in name else name
    port = port or (11434 if not mark else 443 if scheme == "https" else 80)
    return f"{scheme or 'http'}://{name}:{port}{parts.path.rstrip('/')}"


def providers_found(environ: Mapping[str, str]) -> dict[str, Any]:
    """`[providers]` as the usual variables have it."""
    found: dict[str, Any] = {
        name: {"dialect": name if name in OWN_DIALECT else "openai_chat", "base_url": base, "api_key": f"env:{variable}"}
        for name, (variable, base) in PROVIDERS.items()
        if environ.get(variable, "").strip()
    }
    base = ollama_base(environ["OLLAMA_HOST"]) if environ.get("OLLAMA_HOST", "").strip() else None
    if base is not None:
        found["ollama"] = {"dialect": "ollama", "base_url": base}
    return found


def overlay(environ: Mapping[str, str], raw: Mapping[str, Any]) -> Overlay:
    """A copy of the file's `raw` settings with the environment's in place."""
    result = Overlay(_copied(raw))
    for name, path in SHORTCUTS.items():
        if environ.get(name):
            _put(result, path, environ[name], name)
    if environ.get("CLAWPROXY_KEY"):
        if result.raw.get("keys"):
            result.warnings.append(
                f"CLAWPROXY_KEY: adds the client key `{ENVIRONMENT_KEY}` to those in [keys]; unset it if that is not meant"
            )
        _put(result, ("keys", ENVIRONMENT_KEY, "secret"), "env:CLAWPROXY_KEY", "CLAWPROXY_KEY")
    for name in sorted(environ):
        if name.startswith("CLAWPROXY__"):
            parts = name.removeprefix("CLAWPROXY__").split("__")
            if len(parts) < 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
                result.problems.append(f"{name}: names no key; write CLAWPROXY__SECTION__KEY, like CLAWPROXY__SERVER__WORKERS")
            elif environ[name]:
                _put(result, tuple(part.lower() for part in parts), environ[name], name)
        elif name.startswith("CLAWPROXY_") and name not in OWN_NAMES:
            close = difflib.get_close_matches(name, OWN_NAMES, n=1, cutoff=0.85)
            if close:
                result.warnings.append(f"{name}: is not a variable of ClawProxy and is ignored; did you mean {close[0]}?")
    return result


def _put(result: Overlay, path: KeyPath, value: str, variable: str) -> None:
    table, place = result.raw, []
    for part in path[:-1]:
        name = _existing(table, str(part))
        place.append(name)
        inner = table.get(name)
        if inner is None:
            inner = table[name] = {}
        elif not isinstance(inner, dict):
            where = ".".join(map(str, place))
            result.problems.append(f"{variable}: {where} is no table in the file; set it there, or here as a whole")
            return
        table = inner
    name = _existing(table, str(path[-1]))
    table[name] = EnvText(value)
    result.origins[(*place, name)] = variable


def _existing(table: Mapping[str, Any], part: str) -> str:
    """The key of `table` that `part` means: variables know neither case nor dashes nor dots."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "_", name.lower())

    return part if part in table else next((name for name in table if plain(name) == plain(part)), part)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}
    return value
