"""Read a configuration, structure it, check it: all problems at once, each with its file, line, key and fix.

Rule 1: a problem is one line, `FILE:LINE: key.path: what is wrong; what would be right`. What came from a variable names the
        variable instead of file and line.
Rule 2: a table that can not be read does not hide the mistakes of the others, and causes no follow-up complaint.
Rule 3: no secret is resolved here (`secretrefs`), nothing is connected to, nothing is written.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from clawproxy.clocks import Deadlines
from clawproxy.config import environment
from clawproxy.config.checks import DIALECTS, check
from clawproxy.config.findings import Names
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import dotted, line_of, lines
from clawproxy.config.policies import PolicyConfig
from clawproxy.config.rates import structure_rates
from clawproxy.config.residency import ResidencyConfig, in_regions
from clawproxy.config.roles import RoleConfig
from clawproxy.config.schema import (
    AlertsConfig,
    BudgetConfig,
    Config,
    KeyConfig,
    LimitsConfig,
    LogConfig,
    ModelConfig,
    PipelineConfig,
    ProviderConfig,
    ServerConfig,
)
from clawproxy.config.secretrefs import NO_SCHEMES, Schemes, check_secrets
from clawproxy.config.structure import make_converter, structure_section, suggest
from clawproxy.config.units import kind_of, shown
from clawproxy.errors import ConfigError

MOST = 4 * 1024 * 1024
"""Bytes a configuration file may have."""
_SECTIONS: Mapping[str, type[Any]] = {
    "server": ServerConfig,
    "pipeline": PipelineConfig,
    "deadlines": Deadlines,
    "limits": LimitsConfig,
    "log": LogConfig,
    "alerts": AlertsConfig,
}
_NAMED: Mapping[str, type[Any]] = {
    "providers": ProviderConfig,
    "models": ModelConfig,
    "keys": KeyConfig,
    "budgets": BudgetConfig,
    "policies": PolicyConfig,
    "roles": RoleConfig,
    "residency": ResidencyConfig,
}


@frozen
class Source:
    """Where settings came from, so that a sentence can say it."""

    name: str
    """The file as the operator named it; empty where there is none."""
    found: Mapping[KeyPath, int] = field(factory=dict)
    origins: Mapping[KeyPath, str] = field(factory=dict)

    def place(self, path: KeyPath) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
            if path[:length] in self.found:
                break
        else:  # a table that only variables made
            for place, variable in self.origins.items():
                if place[: len(path)] == path:
                    return variable
        return f"{self.name}:{line_of(self.found, path)}" if self.name else "environment"

    def order(self, path: KeyPath) -> tuple[int, int, list[str]]:
        steps = [f"{step:06}" if isinstance(step, int) else step for step in path]
        if self.name and ":" in self.place(path):
            return 0, line_of(self.found, path), steps
        return 1, 0, steps

    def located(self, problem: str) -> str:
        """`key.path: sentence`, as a plugin says it, with the place of its key before it; else of its table."""
        key = problem.partition(": ")[0]
        around = [path for path in self.found if path and f"{key}.".startswith((f"{dotted(path)}.", f"{dotted(path)}["))]
        return f"{self.place(max(around, key=len))}: {problem}" if around else problem

    def sentences(self, rows: Collection[tuple[KeyPath, str]]) -> list[str]:
        """One line for each row, in the order of the file."""
        ordered = sorted(rows, key=lambda row: self.order(row[0]))
        return list(dict.fromkeys(f"{self.place(path)}: {dotted(path)}: {sentence}" for path, sentence in ordered))


@frozen
class Loaded:
    config: Config
    warnings: list[str]
    settings: Mapping[str, Any] = field(factory=dict)
    """Each plugin's own section as an instance of its class; defaults where the file has none."""
    source: Source = Source("")

    def secret_problems(
        self, schemes: Schemes = NO_SCHEMES, environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Resolve every secret: problems and warnings, as sentences."""
        problems, warnings = check_secrets(self.config, schemes, environ)
        return self.source.sentences(problems), self.source.sentences(warnings)


def load(
    path: Path | None,
    *,
    settings: Mapping[str, type[Any]],
    known_dialects: Collection[str] = (),
    known_plugins: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """The configuration in `path`, or without a file what the environment has.

    Args:
        settings: plugins' own settings classes, by the plugins' names.
        known_dialects: provider dialects that plugins registered.
        known_plugins: installed plugins that have no settings class.

    Raises:
        ConfigError: every problem, one line each.
    """
    environ = os.environ if environ is None else environ
    text = "" if path is None else read(path)
    raw = {} if path is None else parse(text, str(path))
    problems: list[str] = []
    if path is None:
        raw = {"providers": environment.providers_found(environ)}
    over = environment.overlay(environ, raw)
    source = Source("" if path is None else str(path), lines(text) if path is not None else {}, over.origins)
    problems += over.problems
    warnings = list(over.warnings)

    base = Path.cwd() if path is None else path.absolute().parent
    parts = _Parts(make_converter(base), over.raw)
    parts.read(settings, set(settings) | set(known_plugins))
    if path is not None:
        parts.made["path"] = path
    config = Config(**parts.made)
    if not parts.broken & {"server"}:
        config = attrs.evolve(config, server=_at_home(config.server))
    config = attrs.evolve(config, models=in_regions(config))
    names = Names(
        providers=set(parts.tables("providers")),
        models=set(parts.tables("models")),
        plugins=set(settings) | set(known_plugins),
        dialects={*DIALECTS, *known_dialects},
    )
    findings = check(config, names, parts.broken)
    problems += source.sentences([*parts.wrong, *(row for row in findings.problems if not parts.explains(row[0]))])
    warnings += source.sentences(findings.warnings)
    if path is None and not config.providers:
        warnings.append(f"environment: no provider was found; set one of {', '.join(_variables())}, or write a file")
    if problems:
        raise ConfigError(problems)
    return Loaded(config, warnings, parts.settings, source)


def read(path: Path) -> str:
    """The file's text. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise ConfigError([f"{path}: can not be read ({error.strerror}); name a file that this user may read"]) from None
    if len(data) > MOST:
        raise ConfigError([f"{path}: is larger than 4 MiB; this is hardly a configuration"])
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError([f"{path}:1:1: begins with a byte order mark; save the file as UTF-8 without one"])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError([f"{path}:{line}:{column}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8"]) from None


def parse(text: str, name: str) -> dict[str, Any]:
    """TOML text to a dict. Raises ConfigError with line and column."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([f"{name}:1:1: brackets are nested too deeply; use tables"]) from None
    except ValueError as error:  # TOMLDecodeError, and integers too long for Python
        said = str(error)
        match = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", said, re.DOTALL)
        if match is None:
            raise ConfigError([f"{name}:1:1: is not valid TOML: {shown(said)}"]) from None
        line, column = (match[2], match[3]) if match[2] else (str(text.count("\n") + 1), str(len(text) - text.rfind("\n")))
        raise ConfigError([f"{name}:{line}:{column}: is not valid TOML 1.0: {shown(match[1])}; see https://toml.io"]) from None


def _variables() -> list[str]:
    return [*(variable for variable, _ in environment.PROVIDERS.values()), "OLLAMA_HOST"]


def _at_home(server: ServerConfig) -> ServerConfig:
    try:
        return attrs.evolve(server, state_dir=server.state_dir.expanduser())
    except RuntimeError:  # no home directory: who needs the folder says so
        return server


class _Parts:
    """The sections of one file, structured one by one so that a broken one does not hide the others."""

    def __init__(self, converter: Any, raw: Mapping[str, Any]) -> None:
        self.converter = converter
        self.raw = raw
        self.made: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.broken: set[str] = set()
        self.wrong: list[tuple[KeyPath, str]] = []

    def tables(self, section: str) -> Mapping[str, Any]:
        value = self.raw.get(section, {})
        return value if isinstance(value, dict) else {}

    def explains(self, path: KeyPath) -> bool:
        """Whether a complaint about `path` only follows from something that could not be read."""
        return any(
            wrong == path[: len(wrong)]
            or (path == wrong[: len(path)] and not (len(path) == 2 and path[0] in _NAMED and path[0] != "policies"))
            for wrong, _ in self.wrong
        )

    def read(self, settings: Mapping[str, type[Any]], plugins: Collection[str]) -> None:
        known = [*_SECTIONS, *_NAMED, "plugins", "rates"]
        for name, value in self.raw.items():
            if name not in known:
                self.wrong.append(((name,), self._lost(name, value, known)))
            elif not isinstance(value, dict):
                self.wrong.append(((name,), f"is {kind_of(value)}; write a table, [{name}]"))
                self.broken.add(name)
        for name, cls in _SECTIONS.items():
            if isinstance(self.raw.get(name), dict):
                made, wrong = structure_section(self.converter, cls, self.raw[name], (name,))
                self.wrong += self._hinted(wrong)
                if made is None:
                    self.broken.add(name)
                else:
                    self.made[name] = made
        if isinstance(self.raw.get("rates"), dict):
            rates, wrong = structure_rates(self.converter, self.raw["rates"])
            self.wrong += wrong
            if rates is None:
                self.broken.add("rates")
            else:
                self.made["rates"] = rates
        for section, cls in _NAMED.items():
            entries = {}
            for name, value in self.tables(section).items():
                made, wrong = structure_section(self.converter, cls, value, (section, name))
                self.wrong += wrong
                if made is not None:
                    entries[name] = made
            self.made[section] = entries
        self.made["plugins"] = {name: dict(value) for name, value in self.tables("plugins").items() if isinstance(value, dict)}
        self._plugins(settings, plugins)

    def _plugins(self, settings: Mapping[str, type[Any]], plugins: Collection[str]) -> None:
        for name, value in self.tables("plugins").items():
            path: KeyPath = ("plugins", name)
            if name not in plugins:
                self.wrong.append((path, f"is no installed plugin; {suggest(name, sorted(plugins))}"))
            elif name not in settings and value:
                self.wrong.append((path, "takes no settings; remove this section"))
        for name, cls in settings.items():
            made, wrong = structure_section(self.converter, cls, self.tables("plugins").get(name, {}), ("plugins", name))
            self.wrong += wrong
            if made is not None:
                self.settings[name] = made

    def _lost(self, name: str, value: Any, known: list[str]) -> str:
        if not isinstance(value, dict):
            home = next((section for section, cls in _SECTIONS.items() if name in attrs.fields_dict(cls)), None)
            if home is not None:
                return f"stands outside of any section; move it under [{home}]"
        return f"is not a section; {suggest(name, known)}"

    def _hinted(self, rows: list[tuple[KeyPath, str]]) -> list[tuple[KeyPath, str]]:
        """An unknown key that another section has is pointed there."""
        hinted = []
        for path, sentence in rows:
            if len(path) == 2 and sentence.startswith("is not a key here"):
                homes = [section for section, cls in _SECTIONS.items() if path[1] in attrs.fields_dict(cls)]
                if homes:
                    sentence = f"is not a key here; move it under [{homes[0]}]"
            hinted.append((path, sentence))
        return hinted
