"""`clawproxy doctor` as its users run it, and the pure parts it is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import Config
from clawproxy.config.units import parse_duration
from clawproxy.doctor import BALANCERS, CAUSES, Evidence, as_json, as_text, diagnose, evidence, gather
from clawproxy.doctor.balancers import named
from clawproxy.doctor.clients import cluster
from clawproxy.doctor.findings import round_up

CONFIG = """
[providers.openai]
base_url = "https://api.openai.com/v1"
[models.m]
routes = [{ provider = "openai", model = "m" }]
"""


def line(event: str, **fields: Any) -> str:
    return json.dumps({"ts": "2026-01-01T00:00:00.000Z", "level": "info", "event": event, "generation": 1, **fields})


def slow(**changes: Any) -> str:
    fields = {
        "error": "timeout.first_token", "outcome": "timeout.first_token", "clock": "first_token", "limit_ms": 120_000,
        "setting": "deadlines.first_token", "fault": "provider", "provider": "openai", "model": "m",
    }  # fmt: skip
    return line("exchange.closed", **{**fields, **changes})


def doctor(folder: Path, *arguments: str, config: str = CONFIG, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "clawproxy.toml").write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "clawproxy", "doctor", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": ""},
    )


def test_healthy_is_0(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(line("exchange.closed", outcome="complete", total_ms=3.0) + "\n")
    done = doctor(tmp_path, "--log", "log")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing is wrong." in done.stdout


def test_a_finding_is_1_and_names_key_and_value(tmp_path: Path) -> None:
    """Several logs are one; a journal's prefix is skipped; what is no line of ours is counted."""
    (tmp_path / "one").write_text(f"Jan 01 host clawproxy[7]: {slow()}\nnot ours\n")
    done = doctor(tmp_path, "--log", "one", "--log", "-", stdin=slow() + "\n")
    assert done.returncode == 1
    assert "A provider begins to answer too late: 2 of 2" in done.stdout
    assert '-> models.m.deadlines.first_token = "4m"' in done.stdout
    assert "1 other lines were left out" in done.stdout.replace("\n", " ")
    found = json.loads(doctor(tmp_path, "--log", "one", "--json").stdout)
    assert not found["healthy"]
    [finding] = found["findings"]
    assert (finding["cause"], finding["fault"], finding["count"]) == ("slow_first_token", "provider", 1)
    assert finding["change"] == [{"key": "models.m.deadlines.first_token", "value": "4m"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--log", "nowhere"), "--log nowhere: No such file"),
        (("--behind", "foo"), "'foo' is not one of"),
        (("--behind-idle", "60"), '"60" has no unit'),
        (("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_misuse_is_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = doctor(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_value_beyond_total_takes_total_along() -> None:
    evidence = gather([slow(limit_ms=400_000)])
    [finding] = diagnose(Config(), evidence)
    assert [(change.key, change.value) for change in finding.change] == [
        ("deadlines.first_token", "15m"),
        ("deadlines.total", "20m"),
    ]


@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_is_known_by_its_own_documents(name: str) -> None:
    balancer = BALANCERS[name]
    assert balancer.source
    findings = diagnose(Config(), Evidence(), balancer)
    assert all(finding.cause == "balancer_contradiction" for finding in findings)
    settings = {finding.setting: finding.change[0].value for finding in findings}
    if balancer.reuse >= 75:
        assert parse_duration(settings["deadlines.idle"]) > balancer.reuse
    assert ("deadlines.total" in settings) == (balancer.whole < 600)
    assert "deadlines.keepalive_sse" not in settings, "the default of 15 s is under every one's limit"


def test_a_balancer_more_impatient_than_the_keep_alives() -> None:
    findings = diagnose(Config(), Evidence(), named("nginx", 10.0))
    values = {finding.setting: finding.change[0].value for finding in findings}
    assert {"deadlines.keepalive_sse", "deadlines.keepalive_ws"} <= set(values)
    assert all(parse_duration(value) <= 5.0 for value in values.values())


def test_lines_that_were_left_out_count() -> None:
    evidence = gather([slow(suppressed=7), line("log.suppressed", cause="exchange.closed timeout.first_token", suppressed=4)])
    [finding] = diagnose(Config(), evidence)
    assert finding.count == 12


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2))
NAMES = """ts error outcome clock limit_ms setting fault provider model key quiet_ms step stream suppressed cause
first_token_ms total_ms surface"""
names = st.sampled_from(NAMES.split())
events = st.sampled_from(["exchange.closed", "attempt.failed", "connection.cut", "auth.refused", "log.suppressed", "x"])
known = st.sampled_from(
    ["timeout.queue", "client_gone", "overloaded", "auth.expired", "provider_error.unreachable", "first_token"]
)


@given(st.lists(st.tuples(events, st.dictionaries(names, values | known)), max_size=30))
def test_whatever_a_log_holds_it_is_read_and_printed(lines: list[tuple[str, dict[str, Any]]]) -> None:
    evidence = gather([json.dumps({**fields, "event": event}) for event, fields in lines])
    findings = diagnose(Config(), evidence, BALANCERS["nginx"])
    assert all(finding.cause in CAUSES and finding.why for finding in findings)
    text = as_text(findings, evidence)
    assert "\x1b" not in text
    assert not any(char in text for char in "\u202e\u2028\r")
    json.loads(as_json(findings, evidence))


@given(st.floats(min_value=0.001, max_value=1e6))
def test_a_suggestion_is_round_and_no_less(seconds: float) -> None:
    up = round_up(seconds)
    assert seconds <= up * 1.000001
    assert up <= max(seconds * 2, 3600 + seconds)
    assert round_up(up) == pytest.approx(up)


@given(st.floats(min_value=0.3, max_value=500), st.integers(3, 50), st.lists(st.floats(0.0, 500), max_size=3))
def test_a_clock_is_found_among_people(limit: float, times: int, people: list[float]) -> None:
    found = cluster([limit * (1 + 0.001 * (n % 5)) for n in range(times)] + people)
    assert found is not None
    assert found.count >= times


def test_what_is_remembered_of_a_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MOST_GROUPS", 20)
    lines = [
        json.dumps(line)
        for at in range(100)
        for line in (
            {"event": "log.suppressed", "cause": f"x {at}", "suppressed": 1},
            {"event": "exchange.closed", "outcome": "client_gone", "key": f"k{at}"},
            {"event": "exchange.closed", "outcome": "x", "error": f"e{at}", "key": f"k{at}"},
        )
    ]
    found = evidence.Evidence()
    for line in lines:
        found.read(json.loads(line))
    assert max(len(found.stray), len(found.gone[False].keys), *(len(group.keys) for group in found.groups.values())) <= 20
    assert found.gone[False].quiet.count == 100
