"""docs/resilience.md: its words are those of the code, its examples load, its figures are the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import clawproxy_cache
from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy_router import RouterSettings
from clawproxy_router.credentials import LEAST, MOST
from clawproxy_router.resting import BREAKING
from clawproxy_router.retries import UNPROCESSED
from clawproxy_router.tree import RESTING

PAGE = (Path(__file__).parents[2] / "docs" / "resilience.md").read_text()
WORDS = re.sub(r"\s+", " ", PAGE)
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PLUGINS = Plugins([*PipelineConfig().order, "cache"], {"cache": clawproxy_cache})
SETTINGS = PLUGINS.registry.settings


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_load(number: int, tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(EXAMPLES[number])
    assert load(tmp_path / "claw.toml", settings=SETTINGS, known_plugins=PLUGINS.names, environ={}).warnings == []


def test_every_word_is_explained() -> None:
    assert all(f"`{word}`" in PAGE for word in RESTING)
    assert all(f"`{slug.partition('.')[2]}`" in PAGE for slug in BREAKING)
    assert len(EXAMPLES) == 4


def test_the_figures_are_the_defaults() -> None:
    own = RouterSettings()
    breaker, credentials, retries, ejection = own.breaker, own.credentials, own.retries, own.ejection
    for sentence in (
        f"It opens after {breaker.consecutive} failures in a row, or where half of at least {breaker.requests} requests within "
        f"{breaker.window:g} s failed",
        f"for {breaker.open:g} s at first, twice as long each time it opens again, up to {breaker.longest:g} s",
        f"at least {LEAST:g} s, at most {MOST:g} s",
        f"{ejection.margin:g} above its siblings' average",
        f"after {ejection.requests} requests, is tried after them for {ejection.time:g} s",
        f"drawn between nothing and {retries.first * 1000:g} ms",
        f"A Retry-After of up to {retries.longest:g} s",
        f"of which {retries.burst} may be saved up",
        f"the status was {', '.join(map(str, sorted(UNPROCESSED)[:-1]))} or {max(UNPROCESSED)}",
    ):
        assert sentence in WORDS, sentence
    assert (breaker.rate, retries.share, retries.floor, ejection.share) == (0.5, 0.2, 1.0, 0.5)
    assert (credentials.rest, credentials.longest, credentials.refusals, credentials.disabled) == (1.0, 60.0, 3, 600.0)
