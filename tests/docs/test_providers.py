"""docs/providers.md: each block loads without a warning, gets the profile it stands under, and works."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from clawproxy.config import SecretRef
from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.dialects import PROVIDER
from clawproxy.dialects.openai_chat.provider import OpenAIChatProvider
from clawproxy.dialects.profiles import PROFILES
from clawproxy.pipeline import Plugins
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, gateway
from tests.e2e.http_client import fetch

PAGE = (Path(__file__).parent.parent.parent / "docs" / "providers.md").read_text()
SETTINGS = Plugins(PipelineConfig().order).registry.settings
BLOCKS = [
    (section.partition("\n")[0], code)
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    for code in re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
]
PROFILE_OF = {
    "OpenAI": "openai",
    "Azure OpenAI": "azure",
    "XRoute": "xroute",
    "vLLM": "vllm",
    "OpenRouter": "openrouter",
    "Groq": "groq",
    "Mistral": "mistral",
    "DeepSeek": "deepseek",
    "Amazon Bedrock": "bedrock",
    "Ollama": "ollama_compat",
    "OpenClaw": "openclaw",
}


def test_every_profile_has_its_block_and_its_row() -> None:
    assert {section for section, _ in BLOCKS} == PROFILE_OF.keys()
    assert set(PROFILE_OF.values()) | {"default", "azure_entra"} == PROFILES.keys()
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert [row[0].strip().strip("`") for row in rows] == list(PROFILES)
    for row in rows:
        profile = PROFILES[row[0].strip().strip("`")]
        shown = re.findall(r"`([^`]+)`", row[1])
        for host in profile.hosts:
            assert any(fnmatchcase(host, pattern) for pattern in shown), f"{profile.name}: {host}"
        assert ("no embeddings" in row[6]) is not profile.embeddings
        assert ("`top_k`" in row[6]) is profile.top_k
        assert ("`system`" in row[4]) is not profile.developer
        assert ("asked for" in row[3]) is profile.usage


@pytest.mark.parametrize(("section", "block"), BLOCKS, ids=[f"{section}-{place}" for place, (section, _) in enumerate(BLOCKS)])
async def test_each_block_works(section: str, block: str, tmp_path: Path) -> None:
    """Loaded as it stands, then served with the scripted provider in the host's place."""
    (tmp_path / "claw.toml").write_text(block)
    loaded = load(tmp_path / "claw.toml", settings=SETTINGS, environ={})
    assert loaded.warnings == []
    [(name, settings)] = loaded.config.providers.items()
    dialect = PROVIDER[settings.dialect].configured(settings)
    assert isinstance(dialect, OpenAIChatProvider)
    assert dialect.profile.name == (settings.profile or PROFILE_OF[section])
    async with ScriptedProvider.running() as provider:
        assert settings.base_url is not None
        path = urlsplit(settings.base_url).path
        here = attrs.evolve(
            settings,
            base_url=provider.url + path,
            profile=dialect.profile.name,
            api_key=SecretRef("", "sk-of-the-host-0123456789"),
        )
        models = loaded.config.models
        async with gateway(tmp_path, providers={name: here}, models=models) as running, await running.connect() as connection:
            body = {"model": next(iter(models), f"{name}/m"), "messages": [{"role": "user", "content": "hi"}]}
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            with trio.fail_after(5):
                reply = await fetch(connection, "POST", "/v1/chat/completions", headers=headers, body=json.dumps(body).encode())
        assert reply.status == 200, reply.body
        entry = provider.log.last
        assert entry.target.startswith(path)
        for field in settings.headers:
            assert entry.header(field) == settings.headers[field]
