"""`clawproxy policy` by process: cases, and the audit log of a real run of the example, with the gateway up and down."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from clawproxy.cli import policyexplain
from clawproxy.cli.auditrows import row_of, rows
from clawproxy.cli.policy import command
from clawproxy.cli.policyexplain import explained, lines
from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy_router.tree import WORDS
from tests.cli.test_commands import ROOT, clawproxy
from tests.e2e.http_client import chat
from tests.e2e.process import Served, served

EXAMPLE = ROOT / "examples" / "policies"
KEYS = {
    "CLAW_STAFF_KEY": "sk-staff-0123456789abcdef",
    "CLAW_INTERN_KEY": "sk-intern-0123456789abcdef",
    "CLAW_HOSPITAL_KEY": "sk-hospital-0123456789abcdef",
}
FREE = {"CLAWPROXY__SERVER__LISTEN": "127.0.0.1:0", "CLAWPROXY__SERVER__ADMIN": "127.0.0.1:0"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in EXAMPLE.glob("*.toml"):
        shutil.copy(file, tmp_path)
    return tmp_path


# --- test -----------------------------------------------------------------------------------------------------------------


def test_the_examples_cases_pass(folder: Path) -> None:
    done = clawproxy(folder, "policy", "test", "cases.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("10 cases, 0 failed.\n")
    assert "ok   a code name is refused\n" in done.stdout


def test_a_case_that_fails_says_what_and_where(folder: Path) -> None:
    (folder / "bad.toml").write_text("""
[[case]]
name = "wrong"
request = { key = "intern", model = "large", max_tokens = 9000 }
[case.expect]
model = "large"
cap = 100
rules = []
refused = "no-code-names"

[[case]]
request = { key = "staff", model = "large", content = "hello" }
expect = { route = "virginia/large" }

[[case]]
request = { key = "intern", model = "large", content = "Project Nightingale" }
expect = { model = "small" }
""")
    done = clawproxy(folder, "policy", "test", "bad.toml")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "FAIL wrong",
        "     bad.toml:6: case[0].expect.model: `large` was expected; it is `small`",
        "     bad.toml:7: case[0].expect.cap: `100` was expected; it is `500`",
        "     bad.toml:8: case[0].expect.rules: [] was expected; it is [interns]",
        '     bad.toml:9: case[0].expect.refused: "no-code-names" was to refuse it; it goes to virginia/small',
        "ok   case 2",
        "FAIL case 3",
        "     bad.toml:17: case[2].expect: it was refused by `no-code-names`",
        "3 cases, 2 failed.",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "bad.toml:1: case: there is none"),
        ("[[cases]]\n", "bad.toml:1: cases: is not known here; write [[case]]"),
        ('[[case]]\nrequest = {}\nexpect = { cap = 1 }\n', "bad.toml:2: case[0].request.model: is missing"),
        ('[[case]]\nrequest = { model = "x", needs = "tool" }\nexpect = { cap = 1 }\n', "did you mean `tools`?"),
        ('[[case]]\nrequest = { model = "x" }\nexpect = {}\n', "bad.toml:3: case[0].expect: is empty"),
        ('[[case]]\nrequest = { model = "x" }\nexpect = { error = "not_found" }\n', "is no error"),
        ('[[case]]\nrequest = { model = "x" }\nexpect = { rout = "a/b" }\n', "did you mean `route`"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_misuse(folder: Path, text: str, said: str) -> None:
    (folder / "bad.toml").write_text(text)
    done = clawproxy(folder, "policy", "test", "bad.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


# --- explaining ---------------------------------------------------------------------------------------------------------------


def test_every_word_of_the_routers_is_put_into_plain_language() -> None:
    known = {*policyexplain._REASONS, *policyexplain.LEFT_OUT, *policyexplain._LAST, *policyexplain._STEPS, "degraded"}
    assert known >= WORDS


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        ([("cache", "first", "complete")], "cache/m: an answer to the same request was kept (cache)"),
        (
            [("a", "first", "provider_error.server"), ("a", "retry", "complete")],
            "a/m: the first in order (priority); then a/m again, after provider_error.server",
        ),
        (
            [("a", "first", "timeout.rate"), ("cache", "failover", "complete")],
            "a/m: the first in order (priority); "
            "then an older answer, as nothing else could serve, after timeout.rate (degraded)",
        ),
        (
            [("a", "first", "x")] + [("b", "failover", "x")] * 9,
            "a/m: the first in order (priority); then b/m instead, after x; 6 more" + "; then b/m instead, after x" * 3,
        ),
    ],
)
def test_why_in_a_sentence(attempts: list[tuple[str, str, str]], why: str) -> None:
    rows = [
        {"number": at, "provider": provider, "model": "m", "reason": reason, "outcome": outcome}
        for at, (provider, reason, outcome) in enumerate(attempts, 1)
    ]
    assert policyexplain._why({"attempts": rows}) == why


@pytest.mark.parametrize(
    "changed", ['"attempts":5', '"attempts":[{"provider":"a"}]', '"rules":[7]', '"considered":[{"why":null}]', '"notices":[null]']
)
def test_a_row_that_somebody_changed_is_passed_over(tmp_path: Path, changed: str) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "a.jsonl").write_text('{"request_id":"1",' + changed + '}\n[]\n7\n{"request_id":"2"}\n')
    assert [row["request_id"] for row in rows(tmp_path)] == ["2"]
    assert row_of(tmp_path, "1") is None


# --- explain, dry-run, diff ---------------------------------------------------------------------------------------------------


async def ask(gateway: Served, key: str, prompt: str = "hello", model: str = "large") -> None:
    async with await trio.open_tcp_stream(*gateway.address) as stream:
        await chat(stream, prompt, key=KEYS[f"CLAW_{key.upper()}_KEY"], model=model)


def inside(folder: Path, *words: str) -> str:
    """The same in this process, which is quicker."""
    done = CliRunner().invoke(command, [*words, "--config", str(folder / "clawproxy.toml")])
    assert done.exit_code == 0, done.output
    return done.stdout


async def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return await trio.to_thread.run_sync(lambda: clawproxy(folder, "policy", *words))


async def test_a_run_explained_and_replayed(folder: Path) -> None:
    text = (folder / "clawproxy.toml").read_text()
    text += "\n[plugins.router.retries]\nmost = 0\n"
    shadow = text + '\n[policies.no-large]\nwhen = { key = "staff" }\nrestrict = { provider = "frankfurt" }\nshadow = true\n'
    async with served(folder, shadow, **KEYS, **FREE) as gateway:
        await ask(gateway, "staff")
        await ask(gateway, "staff", "script: status 500")
        await ask(gateway, "staff", model="small")
        await ask(gateway, "intern")
        await ask(gateway, "intern", "Project Nightingale?")
        await ask(gateway, "hospital")
        await ask(gateway, "intern", model="small")
        with trio.fail_after(5):
            while len(found := list(rows(folder / "state"))) < 7:
                await trio.sleep(0.02)
        up = await run(folder, "explain", found[0]["request_id"])
    loaded = load(folder / "clawproxy.toml", settings=Plugins(PipelineConfig().order).registry.settings, environ=KEYS)
    told = [lines(explained(row, loaded.config)) for row in found]
    for each in told:
        assert 7 <= len(each) <= 10
    down = await run(folder, "explain", found[0]["request_id"])
    assert (up.returncode, up.stderr) == (0, "")
    assert up.stdout == down.stdout == "\n".join(told[0]) + "\n"
    assert [line.split(maxsplit=1)[0] for line in told[0]] == [
        "request", "from", "asked", "rules", "candidates", "chosen", "attempts", "answer",
    ]  # fmt: skip

    def said(number: int, name: str) -> str:
        [line] = [line for line in told[number] if line.startswith(name)]
        return line.removeprefix(name).strip()

    assert said(0, "chosen") == "virginia/large: the cheapest (cost)"
    assert said(0, "rules") == "none applied; in a shadow: no-large: restrict"
    assert said(0, "candidates").startswith("virginia/large 0.0")
    assert said(1, "chosen").endswith("; then frankfurt/large instead, after provider_error.server")
    assert said(1, "attempts").startswith("1 first virginia/large provider_error.server; 2 failover frankfurt/large")
    assert said(2, "candidates") == "virginia/small, frankfurt/small (as configured now)"
    assert said(2, "chosen") == "virginia/small: the first in order (priority)"
    assert said(3, "rules") == "interns: model, interns: cap"
    assert said(3, "chosen") == "virginia/small: the first in order (priority), among what interns left"
    assert said(3, "notices") == "model_rewritten"
    assert said(4, "chosen") == "nothing: policy no-code-names refused it"
    assert said(5, "candidates") == "frankfurt/large; not asked: virginia/large (a policy left it out)"
    assert said(6, "chosen") == "nothing: there is no such model for this key"

    as_json = json.loads(inside(folder, "explain", found[5]["request_id"], "--json"))
    assert [(each["provider"], each["why"]) for each in as_json["candidates"]] == [
        ("frankfurt", "cheapest"),
        ("virginia", "policy"),
    ]
    unknown = await run(folder, "explain", "no-such-request")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no request 'no-such-request' in" in unknown.stderr

    await replays(folder, found)


async def replays(folder: Path, found: list[dict[str, Any]]) -> None:
    now = json.loads(inside(folder, "dry-run", "--json"))
    assert (now["requests"], now["differ"]) == (6, 0)
    now["unknown"].pop("nights", None)  # which is asked at night only
    assert now["unknown"] == {"no-code-names": 3, "urgent": 3}
    (folder / "other.toml").write_text(
        '[policies.health-stays-here]\nwhen = { tag = "health" }\nrefuse = "No."\n'
        '[policies.big]\nwhen = { model = "large", size = { input_tokens = "> 0" } }\ncap = 10\n'
    )
    other = json.loads(inside(folder, "dry-run", "--policies", str(folder / "other.toml"), "--json"))
    by_name = {(line["policy"], line["action"]): line for line in other["policies"]}
    assert other["differ"] == 4
    assert by_name["health-stays-here", "refuse"]["newly"] == 1
    assert by_name["health-stays-here", "refuse"]["examples"] == [found[5]["request_id"]]
    assert by_name["health-stays-here", "restrict"]["no_longer"] == 1
    interns = by_name["interns", "model"]
    assert [interns[name] for name in ("recorded", "now", "newly", "no_longer", "shadow")] == [1, 0, 0, 1, False]
    text = (await run(folder, "dry-run")).stdout
    assert text.startswith("6 requests; policies would have done something else on 0 of them.\npolicy ")
    assert "no-code-names: not known for 3 requests; the audit log does not hold content.\n" in text
    assert inside(folder, "dry-run", "--since", "2031-01-01T00:00:00Z").startswith("0 requests;")
    wrong = await run(folder, "dry-run", "--since", "yesterday")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    (folder / "other.toml").write_text('[policies.a]\nmodel = "larg"\n')
    refused = await run(folder, "dry-run", "--policies", "other.toml")
    assert (refused.returncode, refused.stderr) == (
        2,
        'other.toml:2: policies.a.model: "larg" is not in [models]; did you mean `large`?\n',
    )

    differs = json.loads(inside(folder, "diff", "--json"))
    [line] = [each for each in differs if each["policy"] == "no-large"]
    assert (line["action"], line["requests"], line["different"]) == ("restrict", 3, 2)
    assert "no-large  restrict  3         2" in (await run(folder, "diff")).stdout
