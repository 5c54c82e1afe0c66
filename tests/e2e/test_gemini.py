"""google-genai over a running gateway: with a provider of the same format behind it, and with one of another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from google import genai
from google.genai import errors, types

from clawproxy.config import ModelConfig, ProviderConfig, RouteConfig, SecretRef
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch

PROVIDERS = ("gemini", "openai_chat")


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway whose model `gemini` and `openai_chat` are one scripted provider, asked in that format."""
    async with gateway(tmp_path) as started:
        provider = started.provider
        key = SecretRef("", PROVIDER_KEY)
        started.config.providers.update(
            {
                "google": ProviderConfig(dialect="gemini", base_url=f"{provider.url}/v1beta", api_key=key),
            }
        )
        yield started
