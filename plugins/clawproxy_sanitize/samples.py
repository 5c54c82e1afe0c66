"""One invented secret of each shape in the catalogue, and text that holds none: for tests, and to try a configuration out.

They are put together here from parts, so that no scanner of repositories stumbles over this file.
"""

from __future__ import annotations

LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789" * 3
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" * 2
HEX = "0123456789abcdef" * 6
BODY = "\n".join((LETTERS + "+/")[:64] for _ in range(5))

SAMPLES = {
    "claw": "claw_" + LETTERS[:33],
    "anthropic": "sk-ant-" + "api03-" + LETTERS[:90] + "-AA",
    "openai": "sk-" + "proj-" + LETTERS[:48],
    "openrouter": "sk-or-" + "v1-" + HEX[:64],
    "sk_key": "sk-" + "canary-" + HEX[:32],
    "stripe": "sk_" + "live_" + LETTERS[:24],
    "webhook_secret": "whsec_" + LETTERS[:32],
    "aws_access_key": "AKIA" + UPPER[:16],
    "aws_secret_key": "aws_secret_access_key" + " = " + LETTERS[:40],
    "github": "ghp_" + LETTERS[:36],
    "gitlab": "glpat-" + LETTERS[:20],
    "google_api": "AIza" + LETTERS[:35],
    "google_oauth": "ya29." + LETTERS[:60],
    "slack": "xoxb-" + "123456789012-" + LETTERS[:24],
    "slack_webhook": "hooks.slack.com/services/" + "T00000000/B00000000/" + LETTERS[:24],
    "jwt": "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:30] + "." + LETTERS[:43],
    "huggingface": "hf_" + LETTERS[:34],
    "groq": "gsk_" + LETTERS[:52],
    "xai": "xai-" + LETTERS[:80],
    "perplexity": "pplx-" + LETTERS[:48],
    "replicate": "r8_" + LETTERS[:37],
    "nvidia": "nvapi-" + LETTERS[:64],
    "npm": "npm_" + LETTERS[:36],
    "pypi": "pypi-" + LETTERS[:100],
    "docker": "dckr_pat_" + LETTERS[:27],
    "digitalocean": "dop_v1_" + HEX[:64],
    "databricks": "dapi" + HEX[:32],
    "sendgrid": "SG." + LETTERS[:22] + "." + LETTERS[:43],
    "shopify": "shpat_" + HEX[:32],
    "hashicorp_vault": "hvs." + LETTERS[:90],
    "notion": "ntn_" + LETTERS[:46],
    "age": "AGE-SECRET-KEY-1" + (UPPER + UPPER)[:58],
    "private_key": f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----",
}

BENIGN = """
Run `pip install scikit-learn` and sk-learn works; a task-manager, a disk-usage tool, risk-averse-people-everywhere-today.
The header reads `-----BEGIN PRIVATE KEY-----` and ends with `-----END PRIVATE KEY-----`; never commit one.
OpenAI keys begin with sk-, GitHub's with ghp_, Slack's with xoxb-, AWS ids with AKIA and JWTs with eyJ.
commit 3f786850e387550fdab836ed7e6dc881de23001b, uuid 123e4567-e89b-12d3-a456-426614174000, task-0123456789abcdef01234567
ICD-10 E11.9; 500 mg b.i.d.; SK-II; AIza; a 9-5 job; x-ray; s3://bucket/key; https://example.com/?q=eyJ&r=1
def secret_access_key(): return os.environ["AWS_SECRET_ACCESS_KEY"]
"""
"""Ordinary text that a careless pattern would take for a secret."""
