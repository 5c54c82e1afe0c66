"""One invented secret of each shape in the catalogue, and text that holds none: for tests, and to try a configuration out.

They are put together here from parts, so that no scanner of repositories stumbles over this file.
"""

from __future__ import annotations

LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789" * 3
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" * 2
HEX = "0123456789abcdef" * 6
UUID = f"{HEX[:8]}-{HEX[:4]}-{HEX[4:8]}-{HEX[8:12]}-{HEX[:12]}"
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
    "elevenlabs": "sk_" + HEX[:48],
    "langfuse": "sk-lf-" + UUID,
    "cerebras": "csk-" + LETTERS[:48].lower(),
    "fireworks": "fw_" + LETTERS[:24],
    "together": "tgp_v1_" + LETTERS[:43],
    "pinecone": "pcsk_" + LETTERS[:60],
    "jina": "jina_" + LETTERS[:60],
    "tavily": "tvly-" + "dev-" + LETTERS[:32],
    "firecrawl": "fc-" + HEX[:32],
    "langsmith": "lsv2_pt_" + HEX[:32] + "_" + HEX[:10],
    "voyage": "pa-" + LETTERS[:43],
    "anyscale": "esecret_" + LETTERS[:26],
    "vercel": "vck_" + LETTERS[:56],
    "azure": "AccountKey=" + LETTERS[:86] + "==",
    "alibaba": "LTAI" + LETTERS[:20],
    "tencent": "AKID" + LETTERS[:32],
    "cloudflare": "v1.0-" + HEX[:24] + "-" + (HEX + HEX)[:146],
    "fly": "fm2_" + LETTERS[:100],
    "heroku": "HRKU-AA" + LETTERS[:58],
    "planetscale": "pscale_tkn_" + LETTERS[:43],
    "supabase": "sbp_" + HEX[:40],
    "netlify": "nfp_" + LETTERS[:40],
    "render": "rnd_" + LETTERS[:28],
    "pulumi": "pul-" + HEX[:40],
    "terraform": "atlasv1." + LETTERS[:67],
    "doppler": "dp.st.dev_1." + LETTERS[:43],
    "tailscale": "tskey-auth-" + LETTERS[:17] + "-" + LETTERS[:32],
    "onepassword": "ops_eyJ" + LETTERS * 2,
    "grafana": "glsa_" + LETTERS[:32] + "_" + HEX[:8],
    "newrelic": "NRAK-" + UPPER[:27],
    "sentry": "sntryu_" + HEX[:64],
    "dynatrace": "dt0c01." + UPPER[:24] + "." + UPPER[:64],
    "posthog": "phx_" + LETTERS[:43],
    "atlassian": "ATATT3" + LETTERS + LETTERS,
    "rubygems": "rubygems_" + HEX[:48],
    "crates_io": "cio" + LETTERS[:32],
    "nuget": "oy2" + LETTERS[:43].lower(),
    "clojars": "CLOJARS_" + LETTERS[:60].lower(),
    "jfrog": "AKCp" + LETTERS[:69],
    "postman": "PMAK-" + HEX[:24] + "-" + HEX[:34],
    "linear": "lin_api_" + LETTERS[:40],
    "figma": "figd_" + LETTERS[:40],
    "airtable": "pat" + LETTERS[:14] + "." + HEX[:64],
    "notion_old": "secret_" + LETTERS[:43],
    "square": "sq0atp-" + LETTERS[:22],
    "meta": "EAA" + LETTERS[:90],
    "braintree": "access_token$" + "production$" + LETTERS[:16].lower() + "$" + HEX[:32],
    "plaid": "access-" + "production-" + UUID,
    "shippo": "shippo_" + "live_" + HEX[:40],
    "twilio": "SK" + HEX[:32],
    "mailgun": "key-" + HEX[:32],
    "brevo": "xkeysib-" + HEX[:64] + "-" + LETTERS[:16],
    "telegram": "bot123456789:AA" + LETTERS[:33],
    "discord_webhook": "discord.com/api/webhooks/" + "123456789012345678/" + LETTERS[:68],
    "yandex": "AQVN" + LETTERS[:38],
    "authorization": "Authorization" + ": Bearer " + LETTERS[:30],
    "url_password": "postgres" + "://app:" + LETTERS[:16] + "@",
    "age": "AGE-SECRET-KEY-1" + (UPPER + UPPER)[:58],
    "private_key": f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----",
}

PERSONAL_SAMPLES = {
    "mail": "erika.mustermann+news@mail.example.org",
    "phone": "+49 30 1234567",
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "us_ssn": "219-09-9999",
    "uk_nino": "AB 12 34 56 C",
    "de_steuer_id": "86095742719",
    "fr_nir": "2 55 08 14 168 025 38",
    "es_dni": "12345678Z",
    "it_codice_fiscale": "RSSMRA85T10A562S",
    "nl_bsn": "BSN 111222333",
    "pl_pesel": "44051401359",
    "se_personnummer": "811228-9874",
    "br_cpf": "529.982.247-25",
    "ch_ahv": "756.9217.0769.85",
}
"""Published examples of each kind, whose check digits hold; they are nobody's."""

BENIGN = """
Run `pip install scikit-learn` and sk-learn works; a task-manager, a disk-usage tool, risk-averse-people-everywhere-today.
The header reads `-----BEGIN PRIVATE KEY-----` and ends with `-----END PRIVATE KEY-----`; never commit one.
OpenAI keys begin with sk-, GitHub's with ghp_, Slack's with xoxb-, AWS ids with AKIA and JWTs with eyJ.
commit 3f786850e387550fdab836ed7e6dc881de23001b, uuid 123e4567-e89b-12d3-a456-426614174000, task-0123456789abcdef01234567
ICD-10 E11.9; 500 mg b.i.d.; SK-II; AIza; a 9-5 job; x-ray; s3://bucket/key; https://example.com/?q=eyJ&r=1
curl -H "Authorization: Bearer YOUR_API_KEY_GOES_HERE" https://user:password@host/; redis://:${REDIS_PASSWORD}@cache:6379
patterns and paths, keys and botany, figures, pay-as-you-go, fc-barcelona, key-value, vcr_cassettes, ops_team, secret_santa
def secret_access_key(): return os.environ["AWS_SECRET_ACCESS_KEY"]
"""
"""Ordinary text that a careless pattern would take for a secret."""
