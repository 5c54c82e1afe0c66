"""Policies over past requests: what others would have done (`dry-run`), what shadows would have changed (`diff`).

Rule: the audit log holds who asked for what and when, not what was said. A condition on the rest is "not known": it is counted,
and taken to have held where that policy is recorded, so that a shadow's verdict on content can be tried as a live one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import define, evolve, field

from clawproxy.cli.auditrows import Row, written_at
from clawproxy.config import Config, PolicyConfig, RestrictConfig, fits
from clawproxy.config.checks_policies import check_policies
from clawproxy.config.findings import Findings, Names
from clawproxy.config.groups import flat_routes
from clawproxy.config.load import Loaded, Source, parse, read
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import lines
from clawproxy.config.structure import make_converter, structure_section
from clawproxy.errors import ConfigError

EXAMPLES = 3
_UNKNOWN = ("metadata", "needs", "content", "budget")


@define
class Line:
    """What one policy did, or would."""

    policy: str
    action: str
    shadow: bool
    recorded: int = 0
    now: int = 0
    newly: int = 0
    no_longer: int = 0
    examples: list[str] = field(factory=list)
    """Request ids of some that differ."""


@define
class Replay:
    requests: int = 0
    differ: int = 0
    """Requests on which live policies would have done something else."""
    lines: dict[tuple[str, str, bool], Line] = field(factory=dict)
    unknown: dict[str, int] = field(factory=dict)
    """Policies, and for how many requests their conditions could not be decided."""


@define
class Shadow:
    policy: str
    action: str
    requests: int = 0
    different: int = 0
    """Of these, how many would have come to something else."""
    examples: list[str] = field(factory=list)


def policies_in(path: Path, loaded: Loaded) -> Mapping[str, PolicyConfig]:
    """`[policies]` of another file, checked against this configuration. Raises ConfigError."""
    text = read(path)
    raw = parse(text, str(path)).get("policies", {})
    source = Source(str(path), lines(text))
    if not isinstance(raw, dict) or not raw:
        raise ConfigError([f"{path}: has no [policies.NAME]; write one"])
    converter, wrong = make_converter(path.absolute().parent), list[tuple[KeyPath, str]]()
    made: dict[str, PolicyConfig] = {}
    for name, table in raw.items():
        policy, problems = structure_section(converter, PolicyConfig, table, ("policies", name))
        wrong += problems
        if policy is not None:
            made[name] = policy
    if not wrong:
        config, found = loaded.config, Findings()
        names = Names(config.providers, config.models, (), ())
        check_policies(evolve(config, policies=made), names, found)
        wrong = found.problems
    if wrong:
        raise ConfigError(source.sentences(wrong))
    return made


def replay(rows: Iterable[Row], policies: Mapping[str, PolicyConfig]) -> Replay:
    from clawproxy_router.policies import RowFacts
    from clawproxy_router.policies.verdict import policies_of

    compiled = policies_of(policies, lambda *_: None)
    made = Replay()
    for row in rows:
        if not row.get("model") or row.get("error") == "model_not_found" or written_at(row) is None:
            continue  # it never came before a policy
        made.requests += 1
        hits = row.get("rules", ())
        verdict = compiled.verdict(RowFacts(row), {hit["rule"] for hit in hits})
        for name in verdict.unknown:
            made.unknown[name] = made.unknown.get(name, 0) + 1
        now = {(hit.rule, hit.action, hit.shadow) for hit in verdict.rules}
        then = {(hit["rule"], hit["action"], hit["shadow"]) for hit in hits}
        made.differ += any(not shadow for _, _, shadow in now ^ then)
        for key in now | then:
            line = made.lines.setdefault(key, Line(*key))
            line.recorded += key in then
            line.now += key in now
            line.newly += key in now - then
            line.no_longer += key in then - now
            if key in now ^ then and len(line.examples) < EXAMPLES:
                line.examples.append(row["request_id"])
    return made


def undecidable(policy: PolicyConfig) -> list[str]:
    """The conditions that a row of the audit log can not answer."""
    found = []
    for when in (policy.when, policy.unless):
        if when is not None:
            found += [name for name in _UNKNOWN if getattr(when, name)]
            if when.size is not None and (when.size.bytes is not None or when.size.messages is not None):
                found.append("size")
            elif when.size is not None:
                found.append("size.input_tokens, of requests that were not counted")
    return list(dict.fromkeys(found))


def shadows(rows: Iterable[Row], config: Config) -> list[Shadow]:
    """What the shadows recorded, and whether it would have made a difference."""
    found: dict[tuple[str, str], Shadow] = {}
    for row in rows:
        for hit in row.get("rules", ()):
            if hit["shadow"]:
                shadow = found.setdefault((hit["rule"], hit["action"]), Shadow(hit["rule"], hit["action"]))
                shadow.requests += 1
                if _differs(row, hit["action"], config.policies.get(hit["rule"]), config):
                    shadow.different += 1
                    if len(shadow.examples) < EXAMPLES:
                        shadow.examples.append(row["request_id"])
    return list(found.values())


def _differs(row: Row, action: str, policy: PolicyConfig | None, config: Config) -> bool:
    """Whether the request came to something else than the policy would have had. Where that can not be told: yes."""
    if row.get("outcome") == "refused.plugin":
        return False
    route, usage = row.get("route"), row.get("usage") or {}
    if policy is None or action in ("refuse", "model"):
        return True
    if action == "cap" and policy.cap is not None:
        taken = usage.get("output_tokens")
        return not isinstance(taken, int) or taken > policy.cap
    if route is None:
        return False
    if action == "choose" and policy.choose is not None:
        chosen = {f"{each.provider}/{each.model}" for each in flat_routes(config.models, policy.choose)} or {policy.choose}
        return f"{route['provider']}/{route['model']}" not in chosen
    return policy.restrict is None or not _within(policy.restrict, route, config)


def _within(restrict: RestrictConfig, route: Mapping[str, Any], config: Config) -> bool:
    place = (route["provider"], route["model"])
    regions = {
        each.region
        for model in config.models.values()
        for each in model.routes
        if (each.provider, each.model) == place and each.region
    }
    return (
        (not restrict.provider or fits(place[0], restrict.provider))
        and (not restrict.route or fits("/".join(place), restrict.route))
        and (not restrict.region or any(fits(region, restrict.region) for region in regions))
    )


def as_json(made: Replay) -> dict[str, Any]:
    return {
        "requests": made.requests,
        "differ": made.differ,
        "policies": [attrs.asdict(line) for line in made.lines.values()],
        "unknown": made.unknown,
    }
