"""The secrets that are known by their shape: public token formats, as their issuers and the open secret scanners describe them.

Rule 1: only formats with a fixed beginning are here. What looks like any random string (an Azure key, a password) can not be
        told from text, and nothing here claims to.
Rule 2: order matters where two begin alike: the first that matches names the secret.
Rule 3: `lead` is context that must stand before the secret and stays in the text.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from clawproxy_sanitize.checks import is_password, is_random


@frozen
class Shape:
    name: str
    pattern: str
    """RE2 syntax, lead included."""
    lead: str = ""
    accepts: Callable[[bytes], int] | None = None
    """How many bytes of a match (less its lead) are what it seems to be, from its beginning; 0: it is none."""
    opening: str = ""
    """What the pattern begins with that is no secret yet: the letters of its format, a token's public half. A stream lets it go
    at once. Empty: as `prefixes` tells."""


# A secret begins where a word begins, or after a JSON escape: tool call arguments are JSON text (`{"env":"X\nsk-..."}`).
_LEFT = r"(?:\b|\\[nrtbf])"
_ESCAPED = r"\\[nrtbf]"


def token(name: str, pattern: str, accepts: Callable[[bytes], int] | None = None, opening: str = "") -> Shape:
    return Shape(name, _LEFT + pattern, _ESCAPED, accepts, opening and _LEFT + opening)


def led(name: str, lead: str, pattern: str, accepts: Callable[[bytes], int] | None = None) -> Shape:
    return Shape(name, lead + pattern, lead, accepts, lead)


_AWS_LEAD = r"(?i:(?:\b|_|\\[nrtbf])secret_?access_?key)\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?"
_PEM_END = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PEM = rf"\bBEGIN {_PEM_END}"

_UUID = r"[a-f0-9]{8}(?:-[a-f0-9]{4}){3}-[a-f0-9]{12}"
_BASE64 = r"[A-Za-z0-9+/]"
_AZURE_LEAD = rf"(?:{_LEFT}(?:AccountKey|SharedAccessKey)=|[?&]sig=)"
_AUTHORIZATION_LEAD = r"(?i:authorization)\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?(?i:basic|bearer|token)\s"
_DISCORD = r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/"
_URL_LEAD = (
    _LEFT
    + r"(?:postgres|postgresql|mysql|mariadb|mongodb|mongodb\+srv|redis|rediss|amqp|amqps|mqtts?|ftps?|sftp|ldaps?|smtps?|https?)"
    r"://[A-Za-z0-9._%+-]{0,64}:"
)

CATALOGUE: tuple[Shape, ...] = (
    token("claw", r"claw_[A-Za-z0-9]{33}"),
    token("anthropic", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    token("openai", r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}"),
    token("openrouter", r"sk-or-[A-Za-z0-9_-]{20,}"),
    # OpenAI's old keys, DeepSeek, Moonshot, LiteLLM and the many that imitate them
    token("sk_key", r"sk-(?:[a-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{20,}"),
    token("stripe", r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    token("elevenlabs", r"sk_[a-f0-9]{48}"),
    token("langfuse", rf"[sp]k-lf-{_UUID}"),
    token("webhook_secret", r"whsec_[A-Za-z0-9+/=]{24,}"),
    token("aws_access_key", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    led("aws_secret_key", _AWS_LEAD, r"[A-Za-z0-9/+=]{40}"),
    token("github", r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    token("gitlab", r"gl(?:pat|ptt|dt|rt|cbt|ft|soat|oas|agent|imt|ffct)-[A-Za-z0-9_-]{20,}(?:\.[0-9a-z]{2}\.[0-9a-z]{9})?"),
    token("google_api", r"(?:AIza[A-Za-z0-9_-]{35}|AQ\.[A-Za-z0-9_-]{40,})"),
    token("google_oauth", r"(?:ya29\.[A-Za-z0-9_-]{20,}|1//0[A-Za-z0-9_-]{38,}|GOCSPX-[A-Za-z0-9_-]{28})"),
    token("slack", r"(?:xox[abceoprs]-[A-Za-z0-9-]{10,}|xoxd-[A-Za-z0-9%/+=-]{20,}|xapp-[A-Za-z0-9-]{20,})"),
    token("slack_webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"),
    token("jwt", r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    token("huggingface", r"hf_[A-Za-z0-9]{30,}"),
    token("groq", r"gsk_[A-Za-z0-9]{40,}"),
    token("xai", r"xai-[A-Za-z0-9]{40,}"),
    token("perplexity", r"pplx-[A-Za-z0-9]{40,}"),
    token("replicate", r"r8_[A-Za-z0-9]{37,}"),
    token("nvidia", r"nvapi-[A-Za-z0-9_-]{40,}"),
    token("npm", r"npm_[A-Za-z0-9]{36,}"),
    token("pypi", r"pypi-[A-Za-z0-9_-]{50,}"),
    token("docker", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}"),
    token("digitalocean", r"do[opr]_v1_[a-f0-9]{64}"),
    token("databricks", r"dapi[a-f0-9]{32}"),
    token("sendgrid", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    token("shopify", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    token("hashicorp_vault", r"hv[bsr]\.[A-Za-z0-9_-]{24,}"),
    token("notion", r"ntn_[A-Za-z0-9]{40,}"),
    # models and what surrounds them
    token("cerebras", r"csk-[a-z0-9]{40,}"),
    token("fireworks", r"fw_[A-Za-z0-9]{22,}"),
    token("together", r"tgp_v1_[A-Za-z0-9_-]{40,}"),
    token("pinecone", r"pcsk_[A-Za-z0-9_]{50,}"),
    token("jina", r"jina_[A-Za-z0-9_-]{50,}"),
    token("tavily", r"tvly-(?:dev-|prod-)?[A-Za-z0-9]{30,}"),
    token("firecrawl", r"fc-[a-f0-9]{32}\b"),
    token("langsmith", r"lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}"),
    token("voyage", r"pa-[A-Za-z0-9_-]{43}\b"),
    token("anyscale", r"esecret_[A-Za-z0-9]{26,}"),
    token("vercel", r"vc[kpiar]_[A-Za-z0-9]{24,}"),
    # clouds and infrastructure
    led("azure", _AZURE_LEAD, r"[A-Za-z0-9+/%]{40,}(?:=|%3[Dd]){0,2}"),
    token("alibaba", r"LTAI[A-Za-z0-9]{17,24}\b"),
    token("tencent", r"AKID[A-Za-z0-9]{32}\b"),
    token("cloudflare", r"v1\.0-[a-f0-9]{24}-[a-f0-9]{146}"),
    token("fly", rf"(?:fo1_[A-Za-z0-9_-]{{43}}|fm[12][ar]?_{_BASE64}{{80,}}={{0,3}})"),
    token("heroku", r"HRKU-[A-Za-z0-9_-]{36,}"),
    token("planetscale", r"pscale_(?:tkn|oauth|pw)_[A-Za-z0-9_-]{32,}"),
    token("supabase", r"(?:sbp_[a-f0-9]{40}|sb_secret_[A-Za-z0-9_-]{20,})"),
    token("netlify", r"nfp_[A-Za-z0-9]{36,}"),
    token("render", r"rnd_[A-Za-z0-9]{24,}"),
    token("pulumi", r"pul-[a-f0-9]{40}"),
    token("terraform", r"atlasv1\.[A-Za-z0-9_=-]{60,}"),
    token("doppler", r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}"),
    token("tailscale", r"tskey-(?:auth|api|client|scim|webhook)-[A-Za-z0-9]{8,}-[A-Za-z0-9]{20,}"),
    token("onepassword", r"ops_eyJ[A-Za-z0-9+/_-]{200,}={0,2}"),
    token("grafana", rf"(?:glc_{_BASE64}{{32,}}={{0,2}}|glsa_[A-Za-z0-9]{{32}}_[a-fA-F0-9]{{8}})"),
    token("newrelic", r"NR(?:AK|II|JS|AA)-[A-Za-z0-9_-]{19,}"),
    token("sentry", rf"(?:sntrys_eyJ{_BASE64}{{40,}}=*_{_BASE64}{{43}}|sntryu_[a-f0-9]{{64}})"),
    token("dynatrace", r"dt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}"),
    token("posthog", r"ph[xc]_[A-Za-z0-9]{40,}"),
    # code, packages and documents
    token("atlassian", r"AT(?:ATT|CTT|BB)[A-Za-z0-9_=+/-]{24,}"),
    token("rubygems", r"rubygems_[a-f0-9]{48}"),
    token("crates_io", r"cio[A-Za-z0-9]{32}\b"),
    token("nuget", r"oy2[a-z0-9]{43}\b"),
    token("clojars", r"CLOJARS_[a-z0-9]{60}"),
    token("jfrog", r"(?:AKCp[A-Za-z0-9]{65,}|cmVmdGtuOj[A-Za-z0-9+/=]{50,})"),
    token("postman", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),
    token("linear", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}"),
    token("figma", r"fig[dopu]_[A-Za-z0-9_-]{40,}"),
    token("airtable", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}", opening=r"pat[A-Za-z0-9]{14}\."),
    token("notion_old", r"secret_[A-Za-z0-9]{43}\b"),
    # money, mail and messages
    token("square", r"sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{22,}"),
    token("meta", r"EAA[A-Za-z0-9]{60,}"),
    token("braintree", r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}"),
    token("plaid", rf"access-(?:sandbox|development|production)-{_UUID}"),
    token("shippo", r"shippo_(?:live|test)_[a-fA-F0-9]{40}"),
    token("twilio", r"SK[a-f0-9]{32}\b"),
    token("mailgun", r"key-[a-f0-9]{32}\b"),
    token("brevo", r"x(?:keysib|smtpsib)-[a-f0-9]{64}-[A-Za-z0-9]{16}"),
    token("telegram", r"bot[0-9]{8,10}:AA[A-Za-z0-9_-]{33}", opening=r"bot[0-9]{8,10}:AA"),
    token("discord_webhook", _DISCORD + r"[A-Za-z0-9_-]{60,}", opening=_DISCORD),
    token("yandex", r"(?:AQVN[A-Za-z0-9_-]{35,}|y0_[A-Za-z0-9_-]{50,})"),
    # where a secret stands, not how it looks
    led("authorization", _AUTHORIZATION_LEAD, r"[A-Za-z0-9._~+/-]{15,}[A-Za-z0-9_~+/-]=*", is_random),
    led("url_password", _URL_LEAD, r"[^\s:@/\"'<>`\\]{3,}@", is_password),
    token("age", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    # The dashes in front stay: a stream would wait at every list item if a match could begin with one.
    Shape(
        "private_key",
        rf"{_PEM}(?:[A-Za-z0-9+/=\s,:.()_]|\\[nrt]|-[A-Za-z0-9]){{16,}}(?:-----END {_PEM_END})?",
        opening=_PEM,
    ),
)
