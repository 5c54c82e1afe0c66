"""`[alerts]`: what is wrong with it is said with file, line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import AlertsConfig, PipelineConfig
from clawproxy.config.checks_alerts import problem_with_url
from clawproxy.config.load import load
from clawproxy.errors import ConfigError
from clawproxy.fetch import problem_with

PROVIDER = '[providers.a]\nbase_url = "https://a.example/v1"\n'


def alerts(tmp_path: Path, text: str, **environ: str) -> AlertsConfig:
    path = tmp_path / "claw.toml"
    path.write_text(f"[alerts]\n{text}\n{PROVIDER}")
    return load(path, settings={}, known_plugins=PipelineConfig().order, environ=environ).config.alerts


def test_all_of_it(tmp_path: Path) -> None:
    made = alerts(
        tmp_path,
        'url = "https://hooks.example/x"\nsecret = "env:S"\nevents = ["latency", "budget.soft"]\nerror_rate = "2.5%"\n'
        'latency = "1500ms"\nwindow = "1m"\nrepeat = "0s"\nleast = 5\nunusual_use = 3\nfile = false',
    )
    assert made.url is not None
    assert (made.url.scheme, made.url.value) == ("", "https://hooks.example/x")
    assert (made.latency, made.window, made.repeat, made.unusual_use) == (1.5, 60.0, 0.0, 3.0)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('url = "http://hooks.example/x"', "claw.toml:2: alerts.url: must begin with https://"),
        ('url = "hooks.example"', "alerts.url: is not a URL"),
        ('events = ["budget.sft"]', 'alerts.events[0]: "budget.sft" is no event'),
        ('secret = "env:S"', "alerts.secret: signs nothing without a url"),
        ('error_rate = "most"', 'alerts.error_rate: "most" is no share of the requests; write it like "5%"'),
        ('latency = "0s"', "alerts.latency: would always be told"),
        ('window = "0s"', "alerts.window: is out of bounds"),
        ('repeat = "25h"', "alerts.repeat: is out of bounds"),
        ("least = 0", "alerts.least: must be at least 1"),
        ("unusual_use = 1", "alerts.unusual_use: must be more than 1"),
        ("unusual_least = -1", "alerts.unusual_least: is negative"),
        ("hook = 1", "alerts.hook: is not a key here"),
    ],
)
def test_mistakes(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        alerts(tmp_path, line)
    assert any(sentence in problem for problem in error.value.problems), error.value.problems


def test_its_secrets_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "claw.toml"
    path.write_text(f'[alerts]\nurl = "env:HOOK"\nsecret = "env:S"\n{PROVIDER}')
    problems, _ = load(path, settings={}, known_plugins=PipelineConfig().order, environ={}).secret_problems(environ={"S": "x"})
    assert problems == [f"{path}:2: alerts.url: env:HOOK is not set; set the variable, or name another"]


@pytest.mark.parametrize(
    "url", ["https://a/b", "http://localhost:1/x", "http://a/", "ftp://a", "https://u:p@a/", "https://a:x/", ""]
)
def test_the_address_is_judged_as_it_is_fetched(url: str) -> None:
    assert (problem_with_url(url) is None) == (problem_with(url) is None)
