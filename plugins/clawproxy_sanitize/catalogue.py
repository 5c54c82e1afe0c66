"""The secrets that are known by their shape: public token formats, as their issuers and the open secret scanners describe them.

Rule 1: only formats with a fixed beginning are here. What looks like any random string (an Azure key, a password) can not be
        told from text, and nothing here claims to.
Rule 2: order matters where two begin alike: the first that matches names the secret.
Rule 3: `lead` is context that must stand before the secret and stays in the text.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Shape:
    name: str
    pattern: str
    """RE2 syntax, lead included."""
    lead: str = ""


# A secret begins where a word begins, or after a JSON escape: tool call arguments are JSON text (`{"env":"X\nsk-..."}`).
_LEFT = r"(?:\b|\\[nrtbf])"
_ESCAPED = r"\\[nrtbf]"


def _token(name: str, pattern: str) -> Shape:
    return Shape(name, _LEFT + pattern, _ESCAPED)


_AWS_LEAD = r"(?i:(?:\b|_|\\[nrtbf])secret_?access_?key)\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?"
_PEM_END = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"

CATALOGUE: tuple[Shape, ...] = (
    _token("claw", r"claw_[A-Za-z0-9]{33}"),
    _token("anthropic", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    _token("openai", r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}"),
    _token("openrouter", r"sk-or-[A-Za-z0-9_-]{20,}"),
    # OpenAI's old keys, DeepSeek, Moonshot, LiteLLM and the many that imitate them
    _token("sk_key", r"sk-(?:[a-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{20,}"),
    _token("stripe", r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _token("webhook_secret", r"whsec_[A-Za-z0-9+/=]{24,}"),
    _token("aws_access_key", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    Shape("aws_secret_key", _AWS_LEAD + r"[A-Za-z0-9/+=]{40}", _AWS_LEAD),
    _token("github", r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    _token("gitlab", r"gl(?:pat|ptt|dt|rt|cbt|ft|soat|agent)-[A-Za-z0-9_-]{20,}"),
    _token("google_api", r"(?:AIza[A-Za-z0-9_-]{35}|AQ\.[A-Za-z0-9_-]{40,})"),
    _token("google_oauth", r"(?:ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{28})"),
    _token("slack", r"(?:xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,})"),
    _token("slack_webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"),
    _token("jwt", r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    _token("huggingface", r"hf_[A-Za-z0-9]{30,}"),
    _token("groq", r"gsk_[A-Za-z0-9]{40,}"),
    _token("xai", r"xai-[A-Za-z0-9]{40,}"),
    _token("perplexity", r"pplx-[A-Za-z0-9]{40,}"),
    _token("replicate", r"r8_[A-Za-z0-9]{37,}"),
    _token("nvidia", r"nvapi-[A-Za-z0-9_-]{40,}"),
    _token("npm", r"npm_[A-Za-z0-9]{36,}"),
    _token("pypi", r"pypi-[A-Za-z0-9_-]{50,}"),
    _token("docker", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}"),
    _token("digitalocean", r"do[opr]_v1_[a-f0-9]{64}"),
    _token("databricks", r"dapi[a-f0-9]{32}"),
    _token("sendgrid", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    _token("shopify", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    _token("hashicorp_vault", r"hv[bsr]\.[A-Za-z0-9_-]{24,}"),
    _token("notion", r"ntn_[A-Za-z0-9]{40,}"),
    _token("age", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    # The dashes in front stay: a stream would wait at every list item if a match could begin with one.
    Shape(
        "private_key",
        rf"\bBEGIN {_PEM_END}(?:[A-Za-z0-9+/=\s,:.()_]|\\[nrt]|-[A-Za-z0-9]){{16,}}(?:-----END {_PEM_END})?",
    ),
)
