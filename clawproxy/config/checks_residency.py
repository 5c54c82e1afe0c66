"""The checks of `[residency]`, and of the regions that providers are in."""

from __future__ import annotations

import re

from clawproxy.config.findings import Findings, Names
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.policies import Words, fits
from clawproxy.config.residency import GLOBAL, SCOPES, ResidencyConfig, known_regions, place_regions
from clawproxy.config.schema import Config
from clawproxy.config.structure import listed, suggest
from clawproxy.config.units import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_REGION = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def check_residency(config: Config, names: Names, found: Findings) -> None:
    for name, settings in config.providers.items():
        if settings.region is not None and not _REGION.fullmatch(settings.region):
            sentence = f'"{shown(settings.region)}" is no region; write small letters, digits, `.`, `_`, `-`, like "eu"'
            found.wrong(("providers", name, "region"), sentence)
    if not config.residency:
        return
    for name, rule in config.residency.items():
        _check(name, rule, config, names, found)
    for (provider, model), regions in place_regions(config).items():
        if len(regions) > 1:
            said = listed(sorted(region or "none" for region in regions))
            found.wrong(("models",), f"{provider}/{model} is said to be in several regions ({said}); say the same each time")


def _check(name: str, rule: ResidencyConfig, config: Config, names: Names, found: Findings) -> None:
    path: KeyPath = ("residency", name)
    if not _NAME.fullmatch(name):
        found.wrong(path, "is no name for a rule; use letters, digits, `_`, `.`, `@` and `-`, at most 64")
    if not rule.scope:
        found.wrong((*path, "scope"), 'is missing: whose data is it? Write it like scope = ["team:clinic"], or "global"')
    for word in rule.scope:
        kind, colon, who = word.partition(":")
        if word != GLOBAL and (kind not in SCOPES or not colon or not who or "*" in who[:-1]):
            kinds = listed([f"{each}:NAME" for each in SCOPES])
            found.wrong((*path, "scope"), f'"{shown(word)}" is nobody; write {kinds} or "global"')
    if not rule.region and not rule.provider:
        found.wrong(path, 'restricts nothing; add region = ["eu"], or provider = ["NAME"]')
    regions = known_regions(config)
    for key, words, known, what in (
        ("region", rule.region, regions, "the region of any route or provider"),
        ("provider", rule.provider, names.providers, "a provider"),
    ):
        for word in words:
            if not word or "*" in word[:-1]:
                found.wrong((*path, key), f'"{shown(word)}" is no pattern; write a whole name or "prefix*"')
            elif not any(fits(each, (word,)) for each in known):
                found.wrong((*path, key), f'"{shown(word)}" is not {what}; {suggest(word, sorted(known))}')
    if rule.region == Words(("*",)) and not rule.provider:
        found.warn((*path, "region"), '"*" allows every place that states a region; name those that are meant')
