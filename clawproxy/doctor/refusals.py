"""Findings about what was refused: credentials, load, and connections that were never made."""

from __future__ import annotations

from clawproxy.config import Config
from clawproxy.doctor.evidence import Evidence, Group
from clawproxy.doctor.findings import Change, Finding
from clawproxy.doctor.timeouts import dns, where


def about_refusals(config: Config, evidence: Evidence) -> list[Finding]:
    findings = []
    for (slug, provider, setting, step), group in evidence.groups.items():
        finding = _about(config, slug, provider, setting, step, group)
        if finding is not None:
            findings.append(finding)
    return findings


def _about(config: Config, slug: str, provider: str, setting: str, step: str, group: Group) -> Finding | None:
    def found(cause: str, fault: str, why: str, key: str | None, change: tuple[Change, ...] = (), weight: float = 1.0) -> Finding:
        places = where(provider, group)
        return Finding(cause, fault, why, group.lost, group.saved, None, key, places, change, weight=weight)

    if slug == "provider_error.unreachable":
        if step == "dns":
            return dns(config, provider, group, "the look-up failed")
        key = f"providers.{provider}.base_url"
        what = "The TLS handshake failed" if step == "tls" else "The connection was refused or reset"
        return found("unreachable", "provider", f"{what}: is the address right, and the service up?", key, (Change(key),))
    if slug == "auth.expired":
        name = setting  # of the key: see `evidence`
        if name in config.keys:
            key = f"keys.{name}.expires"
            why = f"The key {name} has expired. Give it a later date, or give its holder a new one."
            return found("expired_token", "client", why, key, (Change(key),))
        why = f"The key {name or '(unknown)'} has expired or was revoked; its holder needs a new one: clawproxy keys create."
        return found("expired_token", "client", why, "clawproxy keys create")
    if slug in ("auth.invalid", "auth.missing", "auth.throttled"):
        why = "No such key: mistyped, of another gateway, or never sent. One client with a wrong key repeats itself."
        return found("wrong_token", "client", why, "keys", weight=0.2)
    if slug == "provider_error.auth":
        key = f"providers.{provider}.api_key"
        return found("provider_credential", "operator", "It has expired, was revoked, or is another's.", key, (Change(key),))
    if slug in ("provider_error.rate_limited", "provider_error.overloaded", "provider_error.quota"):
        why = {
            "rate_limited": "It limits the rate: ask it for more, add another route, or lower limits.in_flight.",
            "overloaded": "It is overloaded: add another route.",
            "quota": "Its spending limit is reached: pay, or raise it there.",
        }[slug.rpartition(".")[2]]
        return found("provider_limits", "provider", why, f"providers.{provider}")
    if slug == "overloaded" or (setting == "limits.shed_lag" and slug != "other"):
        key = setting or "limits.in_flight"
        why = (
            f"The event loop was more than {group.limit_ms:g}ms late, so new requests were refused: a plugin blocks it, or the "
            "CPU is used up. Run more instances; raise the limit only if late is better than refused."
            if setting
            else "No more could wait for a place, or no descriptor was left. Run more instances."
        )
        value = f"{group.limit_ms * 2:g}ms" if setting else ""
        return found("overload", "gateway", why, key, (Change(key, value),) if value else ())
    return None
