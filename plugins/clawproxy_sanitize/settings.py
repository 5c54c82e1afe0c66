"""`[plugins.sanitize]`, and the rules it makes of itself and the catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import re2
from attrs import field, frozen, validators

from clawproxy.config import Duration, SecretRef
from clawproxy.errors import ConfigError
from clawproxy_sanitize.catalogue import CATALOGUE, Shape
from clawproxy_sanitize.personal import PERSONAL
from clawproxy_sanitize.prefixes import Unfollowable, follow
from clawproxy_sanitize.scanner import Rule, options

Action = Literal["redact", "mask", "restore", "block", "flag", "off"]
OutputAction = Literal["redact", "mask", "block", "flag", "off"]
Only = Literal["flag", "block", "off"]

LARGEST = 128 << 10
"""Characters of all beginnings together. RE2 compiles that in half a second; the next ten times as much takes half a minute,
and an automaton that outgrows its memory would match nothing."""

_HOST = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_NAME = re.compile(r"[a-z0-9_]{1,40}")


@frozen
class PersonalSettings:
    """Personal data: nothing is looked for that is not named in `find`."""

    find: tuple[str, ...] = ()
    """Names of `personal.PERSONAL`, or `["all"]`."""
    input: Action = "redact"
    output: OutputAction = "redact"


@frozen
class InvisibleSettings:
    """Characters nobody sees, and overrides of a text's direction."""

    input: Literal["strip", "flag", "block", "off"] = "strip"
    output: Literal["strip", "flag", "block", "off"] = "off"
    """Off: by default an answer passes byte for byte."""


@frozen
class InjectionSettings:
    """Texts that try to instruct the model: known wordings, weighed. Prompts only."""

    input: Only = "flag"
    threshold: float = 1.0
    """What the weights of the wordings found must add up to (`injection.WORDINGS`)."""


@frozen
class LinkSettings:
    """Links and images in answers that lead to hosts not allowed."""

    output: OutputAction = "off"
    hosts: tuple[str, ...] = ()
    """Hosts allowed, and all under them."""
    which: Literal["data", "all"] = "data"
    """`data`: only addresses that carry some. `all`: every one that leads elsewhere."""


@frozen
class ClassifierSettings:
    """A service that is asked about each prompt, after everything else here was done to it."""

    url: str
    deadline: Duration = field(default=Duration(0.5), validator=validators.gt(Duration(0.0)))
    on_error: Literal["block", "allow"] = "block"
    """What happens where it does not answer in time, or not as it should."""
    action: Literal["block", "flag"] = "block"
    """What happens to a prompt it objects to."""
    token: SecretRef | None = None
    """Sent as `Authorization: Bearer ...`."""
    ca_file: str | None = None


@frozen
class SanitizeSettings:
    input: Action = "redact"
    """What happens to a secret in a prompt: `redact` replaces it by `[redacted:NAME]`, `mask` leaves its last four characters,
    `restore` sends a placeholder and puts the secret back into the answer, `block` refuses the request, `flag` only tells. Holds
    for the operator's own patterns and words too."""
    output: OutputAction = "redact"
    """The same for answers. `block` ends the answer with an error."""
    actions: Mapping[str, Action] = field(factory=dict)
    """Other actions for single patterns, by name, both ways; `restore` stands for `redact` in answers."""
    patterns: Mapping[str, str] = field(factory=dict)
    """More patterns: `NAME = "RE2 syntax"`."""
    words: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """Lists of words, whatever their case: `NAME = ["Project Nightingale", ...]`."""
    personal: PersonalSettings = field(factory=PersonalSettings)
    invisible: InvisibleSettings = field(factory=InvisibleSettings)
    injection: InjectionSettings = field(factory=InjectionSettings)
    links: LinkSettings = field(factory=LinkSettings)
    classifier: ClassifierSettings | None = None


Way = Literal["input", "output"]


@frozen
class Group:
    """Patterns that one setting gives their action."""

    name: Literal["secrets", "personal", "custom", "links"]
    shapes: tuple[Shape, ...]
    input: Action
    output: Action


def groups(settings: SanitizeSettings) -> list[Group]:
    """What is looked for, in order. Raises ConfigError with every mistake in the section."""
    problems: list[str] = []
    known = {shape.name for shape in (*CATALOGUE, *PERSONAL)} | {"link", "invisible", "unfinished"}
    own: list[Shape] = []
    for section, name in [("patterns", name) for name in settings.patterns] + [("words", name) for name in settings.words]:
        where = f"plugins.sanitize.{section}.{name}"
        if not _NAME.fullmatch(name):
            problems.append(f"{where}: a name is up to 40 of a-z, 0-9 and _.")
        elif name in known:
            problems.append(f"{where}: this name is taken.")
        elif section == "patterns":
            own += _custom(where, name, settings.patterns[name], problems)
        else:
            own += _words(where, name, settings.words[name], problems)
        known.add(name)
    wanted = settings.personal.find
    names = [shape.name for shape in PERSONAL]
    for place, name in enumerate(wanted):
        if name not in names and name != "all":
            problems.append(
                f"plugins.sanitize.personal.find[{place}]: `{name}` is not known; there are {', '.join(names)}, and all."
            )
    if not settings.injection.threshold > 0:
        problems.append("plugins.sanitize.injection.threshold: must be more than 0; a single strong wording weighs 1.0.")
    for place, host in enumerate(settings.links.hosts):
        if not _HOST.fullmatch(host):
            problems.append(
                f"plugins.sanitize.links.hosts[{place}]: is no host name; write `example.com`, which allows all under it."
            )
    problems += [f"plugins.sanitize.actions.{name}: there is no such pattern." for name in settings.actions if name not in known]
    problems += [
        f"plugins.sanitize.actions.{name}: has no action of its own; see plugins.sanitize.{section}."
        for name, section in (("link", "links"), ("invisible", "invisible"))
        if name in settings.actions
    ]
    if problems:
        raise ConfigError(problems)
    personal = tuple(shape for shape in PERSONAL if shape.name in wanted or "all" in wanted)
    return [
        Group("secrets", CATALOGUE, settings.input, settings.output),
        Group("personal", personal, settings.personal.input, settings.personal.output),
        Group("custom", tuple(own), settings.input, settings.output),
        Group("links", _links(settings.links), "off", settings.links.output),
    ]


def rules(all_groups: Sequence[Group], settings: SanitizeSettings, way: Way) -> list[Rule]:
    """The rules for one direction, those that are off left out. Raises ConfigError where they are too many."""
    out = []
    for group in all_groups:
        default = group.input if way == "input" else group.output
        for shape in group.shapes:
            action = settings.actions.get(shape.name, default) if default != "off" else "off"
            if action == "restore" and way == "output":
                action = "redact"
            if action != "off":
                led = bool(shape.lead) and shape.pattern.startswith(shape.lead)
                # Half an address or number is let go when it is interrupted: most words begin like one.
                parts: Literal["all", "led", "none"] = "none" if group.name in ("personal", "links") else "led" if led else "all"
                known = group.name == "secrets"  # only there what a match begins with is the same for all, and so tells nothing
                found = follow(shape.pattern, shape.opening, loose=known)
                waits = (found.firm if known else found.begun) or found.whole
                tail = follow(found.head, shape.opening).firm or found.head if known else waits
                opening = found.opening if known else 0
                out.append(Rule(shape.name, action, found, waits, tail, opening, shape.lead, shape.accepts, parts))
    if sum(len(rule.waits) for rule in out) > LARGEST:
        raise ConfigError(["plugins.sanitize: too much to look for; about a thousand words can be followed through a stream."])
    return out


def active(found: Sequence[Group], settings: SanitizeSettings, way: Way) -> tuple[str, ...]:
    """The names of the groups that are looked for in one direction."""
    on: list[str] = [group.name for group in found if group.shapes and getattr(group, way) != "off"]
    if getattr(settings.invisible, way) != "off":
        on.append("invisible")
    if way == "input" and settings.injection.input != "off":
        on.append("injection")
    if way == "input" and settings.classifier is not None:
        on.append("classifier")
    return tuple(on)


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


def _links(settings: LinkSettings) -> tuple[Shape, ...]:
    if settings.output == "off":
        return ()
    from clawproxy_sanitize.links import link

    return (link(settings.hosts, settings.which),)


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
