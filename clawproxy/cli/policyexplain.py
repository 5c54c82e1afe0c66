"""Why a request went where it went: one row of the audit log, in at most ten lines.

Rule: what the row does not hold is read off the configuration as it is now, and said to be. That is the order of routes where
`priority` chose, which weighs nothing and so records nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from clawproxy.cli.auditrows import Row
from clawproxy.cli.common import printable
from clawproxy.config import Config
from clawproxy.config.groups import flat_routes

MOST_SHOWN = 8
MOST_STEPS = 4
LEFT_OUT = {
    "incapable": "can not do what is asked",
    "too_long": "the prompt is too long for it",
    "low_quality": "below the quality asked for",
    "other_region": "not in the region asked for",
    "policy": "a policy left it out",
    "role": "none of the key's roles reaches it",
    "residency": "the data may not go there",
    "breaker_open": "resting: it failed too often",
    "cooling": "resting: over its rate limit",
    "spent": "resting: its money is spent",
    "disabled": "resting: its key was refused",
}
_LAST = {"ejected": "last: it does worse than the others"}

_REASONS = {
    "": "the first in order (priority)",
    "cached": "its cache has the beginning of the prompt (affinity)",
    "failover": "the first that does not rest",
    "priority": "the first in order (priority)",
    "weighted": "drawn by its weight (weighted)",
    "cheapest": "the cheapest (cost)",
    "fastest": "the fastest (latency)",
    "explore": "to learn how fast it is (latency)",
    "least_loaded": "the least loaded (load)",
    "capable": "the first that can serve it (capability)",
    "region": "in the region asked for, or the first (region)",
}
_STEPS = {
    "retry": "again, after {before}",
    "failover": "instead, after {before}",
    "hedge": "beside it, which said nothing in time (hedge)",
    "continue": "to go on where it was cut, after {before}",
    "steer": "anew, as the client said more",
}
_NOTHING = {
    "provider_error.breaker_open": "every route rests",
    "model_not_found": "there is no such model for this key",
    "refused.residency": "no route is where its data may go (residency)",
}
_CACHE = "cache"


def explained(row: Row, config: Config) -> dict[str, Any]:
    """The row, with the candidates it does not hold and a sentence why."""
    considered = row.get("considered")
    candidates = considered if considered else _configured(row, config)
    return {
        **row,
        "candidates": candidates,
        "candidates_from": "row" if considered else "configuration",
        "why": _why(row),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """For people: at most ten."""
    who = [f"{name} {found[name]}" for name in ("key", "user", "team", "app") if found.get(name)]
    asked = f"{found.get('model') or 'no model'} ({found.get('operation')}, {found.get('surface')}"
    out = [
        _line("request", f"{found['request_id']} at {found.get('time')}, generation {found.get('generation')}"),
        _line("from", ", ".join(who)),
        _line("asked for", f"{asked}{', stream' if found.get('stream') else ''})"),
        _line("rules", _rules(found)),
        _line("candidates", _candidates(found)),
        _line("chosen", found["why"]),
        _line("attempts", "; ".join(_attempt(each) for each in found.get("attempts", ())) or "none"),
        _line("answer", _answer(found)),
    ]
    if found.get("residency"):
        regions = dict.fromkeys(str(each["region"]) for each in found.get("attempts", ()) if each.get("region"))
        went = f"; it went to {', '.join(regions)}" if regions else ""
        out.insert(4, _line("residency", f"{', '.join(found['residency'][:MOST_SHOWN])}{went}"))
    if found.get("notices"):
        out.append(_line("notices", ", ".join(found["notices"])))
    return out


def _line(name: str, text: str) -> str:
    return f"{name:<11}{printable(text)}"


def _hits(row: Row, *, shadow: bool) -> list[str]:
    return [f"{hit['rule']}: {hit['action']}" for hit in row.get("rules", ()) if hit["shadow"] is shadow]


def _rules(row: Row) -> str:
    live, shadow = _hits(row, shadow=False), _hits(row, shadow=True)
    text = ", ".join(live[:MOST_SHOWN]) or "none applied"
    return f"{text}; in a shadow: {', '.join(shadow[:MOST_SHOWN])}" if shadow else text


def _configured(row: Row, config: Config) -> list[dict[str, Any]]:
    names = [config.policies[hit["rule"]] for hit in row.get("rules", ()) if not hit["shadow"] and hit["rule"] in config.policies]
    target = next((each.model or each.choose for each in names if each.model or each.choose), None) or row.get("model") or ""
    routes = [(route.provider, route.model) for route in flat_routes(config.models, target) if route.provider]
    if not routes:
        routes = list(dict.fromkeys((each["provider"], each["model"]) for each in row.get("attempts", ())))
    return [{"provider": provider, "model": model, "why": "", "score": None} for provider, model in routes]


def _candidates(found: dict[str, Any]) -> str:
    every = found["candidates"]
    usable = [each for each in every if each["why"] not in LEFT_OUT]
    out = [each for each in every if each["why"] in LEFT_OUT]
    text = ", ".join(_scored(each) for each in usable[:MOST_SHOWN]) or "none"
    if len(usable) > MOST_SHOWN:
        text += f", {len(usable) - MOST_SHOWN} more"
    if out:
        text += "; not asked: " + ", ".join(f"{_place(each)} ({LEFT_OUT[each['why']]})" for each in out[:MOST_SHOWN])
    return text if found["candidates_from"] == "row" or not every else f"{text} (as configured now)"


def _place(each: dict[str, Any]) -> str:
    return f"{each['provider']}/{each['model']}"


def _scored(each: dict[str, Any]) -> str:
    score, why = each.get("score"), each["why"]
    return _place(each) + ("" if score is None else f" {score:.6g}") + (f" ({_LAST[why]})" if why in _LAST else "")


def _first(row: Row, first: dict[str, Any]) -> str:
    """Why the first attempt was made where it was."""
    if first["provider"] == _CACHE:
        return "an answer to the same request was kept (cache)"
    considered = row.get("considered", ())
    why: str = considered[0]["why"] if considered else ""
    asked = [each for each in considered if each["why"] not in LEFT_OUT]
    if why in LEFT_OUT or why in _LAST or (not why and len(asked) < len(considered)):
        return _REASONS["failover"]
    return _REASONS.get(why, why)


def _step(each: dict[str, Any], before: dict[str, Any]) -> str:
    """Why an attempt after the first was made."""
    if each["provider"] == _CACHE:
        return f"then an older answer, as nothing else could serve, after {before['outcome']} (degraded)"
    words = _STEPS.get(each["reason"], each["reason"]).format(before=before["outcome"])
    return f"then {_place(each)} {words}"


def _why(row: Row) -> str:
    attempts = row.get("attempts", ())
    refused = [hit["rule"] for hit in row.get("rules", ()) if hit["action"] == "refuse" and not hit["shadow"]]
    if refused:
        return f"nothing: policy {refused[-1]} refused it"
    if not attempts:
        error = str(row.get("error") or row.get("outcome"))
        return f"nothing: {_NOTHING.get(error, error)}"
    first = attempts[0]
    text = f"{_place(first)}: {_first(row, first)}"
    rules = [
        hit["rule"] for hit in row.get("rules", ()) if hit["action"] in ("model", "choose", "restrict") and not hit["shadow"]
    ]
    if rules:
        text += f", among what {', '.join(rules)} left"
    steps = [_step(each, before) for before, each in pairwise(attempts)]
    if len(steps) > MOST_STEPS:
        steps[1 : 1 - MOST_STEPS] = [f"{len(steps) - MOST_STEPS + 1} more"]
    text = "; ".join([text, *steps])
    return text


def _attempt(each: dict[str, Any]) -> str:
    status = "" if each.get("status") is None else f" {each['status']}"
    return f"{each['number']} {each['reason']} {each['provider']}/{each['model']} {each['outcome']}{status}"


def _answer(row: Row) -> str:
    text = str(row.get("outcome"))
    if row.get("finish"):
        text += f" ({row['finish']})"
    if row.get("error") and row["error"] != row.get("outcome"):
        text += f", {row['error']}"
    usage = row.get("usage")
    if usage:
        text += f"; {usage.get('input_tokens')} tokens in, {usage.get('output_tokens')} out, {usage.get('source')}"
    if row.get("cost_nano") is not None:
        text += f", ${row['cost_nano'] / 1e9:.6f}"
    timing = row.get("timing_ms", {})
    shown = [f"{name} {timing[name]:g} ms" for name in ("first_token", "total", "gateway") if name in timing]
    return f"{text}; {', '.join(shown)}" if shown else text
