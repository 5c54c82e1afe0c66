"""`[plugins.sanitize]`, and the rules it makes of itself and the catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import re2
from attrs import field, frozen

from clawproxy.errors import ConfigError
from clawproxy_sanitize.catalogue import CATALOGUE, Shape
from clawproxy_sanitize.prefixes import Unfollowable, follow
from clawproxy_sanitize.scanner import Rule, options

Action = Literal["redact", "block", "flag", "off"]

LARGEST = 128 << 10
"""Characters of all beginnings together. RE2 compiles that in half a second; the next ten times as much takes half a minute,
and an automaton that outgrows its memory would match nothing."""

_NAME = re.compile(r"[a-z0-9_]{1,40}")


@frozen
class SanitizeSettings:
    input: Action = "redact"
    """What happens to a secret in a prompt: `redact` replaces it by `[redacted:NAME]`, `block` refuses the request, `flag` only
    tells."""
    output: Action = "redact"
    """The same for answers. `block` ends the answer with an error."""
    actions: Mapping[str, Action] = field(factory=dict)
    """Other actions for single patterns, by name, both ways."""
    patterns: Mapping[str, str] = field(factory=dict)
    """More patterns: `NAME = "RE2 syntax"`."""
    words: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """Lists of words, whatever their case: `NAME = ["Project Nightingale", ...]`."""


def rules(settings: SanitizeSettings, default: Action) -> list[Rule]:
    """The rules for one direction, those that are off left out. Raises ConfigError with every mistake in the section."""
    problems: list[str] = []
    known = {shape.name for shape in CATALOGUE}
    shapes = list(CATALOGUE)
    for section, name in [("patterns", name) for name in settings.patterns] + [("words", name) for name in settings.words]:
        where = f"plugins.sanitize.{section}.{name}"
        if not _NAME.fullmatch(name):
            problems.append(f"{where}: a name is up to 40 of a-z, 0-9 and _.")
        elif name in known:
            problems.append(f"{where}: this name is taken.")
        elif section == "patterns":
            shapes += _custom(where, name, settings.patterns[name], problems)
        else:
            shapes += _words(where, name, settings.words[name], problems)
        known.add(name)
    problems += [f"plugins.sanitize.actions.{name}: there is no such pattern." for name in settings.actions if name not in known]
    if problems:
        raise ConfigError(problems)
    found = []
    for shape in shapes:
        action = settings.actions.get(shape.name, default) if default != "off" else "off"
        if action != "off":
            found.append(Rule(shape.name, action, follow(shape.pattern), shape.lead))
    if sum(len(rule.followed.begun or "") for rule in found) > LARGEST:
        raise ConfigError(["plugins.sanitize: too much to look for; about a thousand words can be followed through a stream."])
    return found


def _custom(where: str, name: str, pattern: str, problems: list[str]) -> list[Shape]:
    try:
        compiled = re2.compile(pattern.encode(), options())
        follow(pattern)
    except re2.error as error:
        detail = error.args[0] if error.args else "not a pattern"
        problems.append(f"{where}: RE2 refuses it: {detail.decode() if isinstance(detail, bytes) else detail}")
        return []
    except UnicodeEncodeError:
        problems.append(f"{where}: not valid Unicode.")
        return []
    except Unfollowable as error:
        problems.append(f"{where}: {error}")
        return []
    if compiled.search(b"") is not None:
        problems.append(f"{where}: it matches the empty text, so it would match everywhere.")
        return []
    return [Shape(name, pattern)]


def _words(where: str, name: str, words: tuple[str, ...], problems: list[str]) -> list[Shape]:
    cleaned = [word.strip() for word in words]
    if not all(cleaned) or not cleaned:
        problems.append(f"{where}: a list of words, none of them empty.")
        return []
    # Longest first: RE2 takes the first alternative that matches, and "cat" must not hide "category theory".
    edged = [_edge(word[0]) + re2.escape(word) + _edge(word[-1]) for word in sorted(cleaned, key=len, reverse=True)]
    return [Shape(name, f"(?i:{'|'.join(edged)})")]


def _edge(char: str) -> str:
    """RE2's `\\b` knows ASCII words only; beside other letters it would refuse what should match."""
    return r"\b" if char.isascii() and (char.isalnum() or char == "_") else ""
