"""`clawproxy usage` as an operator runs it, over a ledger that was really written (A17 N10). Most of it in this process: it takes
a second to begin one."""

from __future__ import annotations

import csv
import io
import json
from contextlib import chdir
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from clawproxy import cli
from clawproxy.errors import ConfigError
from clawproxy.stores.sqlite import SqliteStore
from tests.cli.test_commands import clawproxy, environment
from tests.stores.conftest import make_close, make_open

NOON = datetime(2026, 10, 30, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
CONFIG = """
[server]
state_dir = "state"
[providers.a]
base_url = "https://a.example/v1"
api_key = "env:NOT_SET_ANYWHERE"
[models."gpt-4o"]
routes = [{ provider = "a", model = "gpt-4o" }]
price = { input = "1", output = "2" }
[budgets.daily]
scope = "global"
limit = "100 requests"
window = "day"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good attempts on two days, one estimated, one without a price, one that a crash left in the journal."""
    (tmp_path / "clawproxy.toml").write_text(CONFIG)

    async def write() -> None:
        store = SqliteStore.open(tmp_path / "state", "one")
        for index, (model, at, cost, source) in enumerate(
            [
                ("gpt-4o-2024-08-06", NOON, 1_000_000, "measured"),
                ("gpt-4o-2024-08-06", NOON + HOUR, 2_000_000, "estimated"),
                ("gpt-4o-2024-08-06", NOON + 24 * HOUR, 3_000_000, "measured"),
                ("mystery", NOON, None, "measured"),
            ]
        ):
            row = make_open(
                id=f"attempt-{index}", request_id=f"request-{index}", opened=at, model=model[:7], provider_model=model,
                user="=cmd()", provider="a", reserved_output=100,
            )  # fmt: skip
            await store.open_row(row)
            await store.close_row(make_close(row.id, input_tokens=10, output_tokens=5, cost_nano=cost, source=source))
        await store.flush()
        left = make_open(opened=NOON, model="gpt-4o-", provider_model="gpt-4o", reserved_nano=9, reserved_output=2, provider="a")
        await store.open_row(left)  # in the journal alone, as a kill would leave it
        assert store._lock is not None
        store._lock.release()

    trio.run(write)
    return tmp_path


def run(folder: Path, *words: str, **more: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with chdir(folder):
        done = CliRunner().invoke(cli.clawproxy, ["usage", *words], env={"CLAWPROXY_CONFIG": None, **more})
    if isinstance(done.exception, ConfigError):
        return 2, done.stdout, "\n".join(done.exception.problems)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def usage(folder: Path, *words: str, **more: str) -> Any:
    code, out, err = run(folder, *words, **more)
    assert code == 0, err
    return out


def test_json_is_one_object_with_all_there_is(folder: Path) -> None:
    said = json.loads(usage(folder, "--json"))
    for name in ("from", "to", "requests", "attempts", "input_tokens", "output_tokens", "cost_usd", "group_by", "rows"):
        assert name in said
    assert (said["from"], said["requests"], said["attempts"]) == (None, 5, 5), "what the journal alone has counts"
    assert (said["input_tokens"], said["output_tokens"]) == (80, 22)
    assert (said["cost_usd"], said["known_cost_usd"], said["unpriced_attempts"]) == (None, 0.006000009, 1)
    assert (said["group_by"], said["rows"]) == ([], [])


def test_groups_filters_and_times(folder: Path) -> None:
    said = json.loads(usage(folder, "--json", "--by", "model,day", "--provider-model", "gpt-4o-2024-08-06"))
    assert said["cost_usd"] == 0.006
    assert [(row["model"], row["day"], row["attempts"], row["cost_usd"]) for row in said["rows"]] == [
        ("gpt-4o-", "2026-10-30", 2, 0.003),
        ("gpt-4o-", "2026-10-31", 1, 0.003),
    ]
    assert said["rows"][0]["group_by"] == {"model": "gpt-4o-", "day": "2026-10-30"}
    said = json.loads(usage(folder, "--json", "--since", "2026-10-31", "--until", "2026-11-01"))
    assert (said["from"], said["to"], said["attempts"]) == ("2026-10-31T00:00:00Z", "2026-11-01T00:00:00Z", 1)
    assert json.loads(usage(folder, "--json", "--since", "1s"))["attempts"] == 0


def test_csv_has_no_formulas(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(usage(folder, "--csv", "--by", "user"))))
    assert [row["user"] for row in rows] == ["", "'=cmd()"]
    assert (rows[1]["attempts"], rows[1]["cost_usd"], rows[1]["known_cost_usd"]) == ("4", "", "0.006")
    assert len(list(csv.DictReader(io.StringIO(usage(folder, "--csv", "--by", "user", "--user", "nobody"))))) == 0


@pytest.mark.parametrize("columns", ["40", "60", "200"])
def test_the_table_fits_and_marks_what_is_not_measured(folder: Path, columns: str) -> None:
    lines = usage(folder, "--by", "model,user", COLUMNS=columns).splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= max(int(columns), 66), table
    assert any("+ ?" in line for line in table)
    assert any(line.startswith("mystery") and line.endswith("?") for line in table), "not known is not nothing"
    assert any("~" in line for line in table)
    assert any(line.startswith("~ estimated in part") for line in lines)
    assert any("under way, or not settled yet: 1 attempt" in line for line in lines)


def test_the_chart_shows_days_without_use(folder: Path) -> None:
    lines = usage(folder, "--chart", "--by", "hour", "--provider-model", "gpt-4o-2024-08-06", COLUMNS="80").splitlines()
    bars = [line for line in lines if line.startswith("2026-")]
    assert len(bars) == 25
    assert max(map(len, bars)) <= 80
    assert bars[0][:17] == "2026-10-30T12:00Z"
    assert bars[2].split()[1:] == ["$0.0000"], "nothing, and no bar"
    assert usage(folder, "--chart", "tokens", "--by", "model").splitlines()[0].startswith("gpt-4o-")


def test_without_any_use_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "clawproxy.toml").write_text(CONFIG)
    assert usage(tmp_path) == "Nothing was used in that time.\n"
    said = json.loads(usage(tmp_path, "--json"))
    assert (said["attempts"], said["cost_usd"]) == (0, 0.0)
    assert usage(tmp_path, "--csv").startswith("model,requests,")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--by", "colour"], '--by: "colour" is nothing usage is grouped by'),
        (["--since", "soon"], '--since: "soon" is no time'),
        (["--json", "--csv"], "one of --json, --csv and --chart"),
        (["--by", "model", "budgets"], "is written after that word"),
        (["reconcile", "nothere.csv"], "nothere.csv"),
    ],
)
def test_mistakes_are_said_with_exit_code_2(folder: Path, words: list[str], sentence: str) -> None:
    code, _, err = run(folder, *words)
    assert code == 2
    assert sentence in err


def test_budgets(folder: Path) -> None:
    [said] = json.loads(usage(folder, "budgets", "--json"))["budgets"]
    assert (said["budget"], said["scope"], said["limit"], said["used"], said["left"]) == ("daily", "global", 100, 0, 100)
    assert usage(folder, "budgets").splitlines()[1].split()[:2] == ["daily", "global"]


def test_it_works_beside_a_running_gateway(folder: Path) -> None:
    """The lock is another process's: nothing is waited for, nothing is written but what is folded."""
    store = SqliteStore.open(folder / "state", "two")
    try:
        said = json.loads(usage(folder, "--json"))
        assert (said["attempts"], said["open_attempts"], said["orphaned_attempts"]) == (5, 0, 1)
        assert said["known_cost_usd"] == 0.006000009, "settled at what was reserved: the sum is what it was"
        assert (said["input_tokens"], said["output_tokens"]) == (80, 22)
    finally:
        trio.run(store.aclose)


# --- against a provider's export ---------------------------------------------------------------------------------------------

ANTHROPIC = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n"
)
ITS_COST = "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type\n"
OPENAI = "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,model,input_tokens,output_tokens\n"
OPENAI_COST = "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item\n"


def reconcile(folder: Path, text: str, *words: str) -> tuple[int, Any]:
    (folder / "export.csv").write_text(text)
    code, out, err = run(folder, "reconcile", "export.csv", *words)
    return code, json.loads(out) if "--json" in words else out + err


def openai(first: int = 30, second: int = 10, output: int = 12) -> str:
    return (
        f"{OPENAI}1,2,2026-10-30T00:00:00+00:00,x,p,3,gpt-4o-2024-08-06,{first},{output}\n"
        f"1,2,2026-10-31T00:00:00+00:00,x,p,1,gpt-4o-2024-08-06,{second},5\n"
        "1,2,2026-11-01T00:00:00+00:00,,,,,,\n"
    )


def test_an_export_that_agrees(folder: Path) -> None:
    code, said = reconcile(folder, openai(60), "--json", "--tolerance", "0%")
    assert code == 0, said
    assert (said["form"], said["agrees"], said["compared"]) == ("OpenAI's usage", True, 4)
    assert reconcile(folder, openai(60))[1] == "OpenAI's usage: all 4 figures agree.\n"


def test_differences_are_told_by_day_and_model(folder: Path) -> None:
    code, said = reconcile(folder, openai(60, second=99), "--json")
    assert code == 1
    [row] = [row for row in said["rows"] if not row["agrees"]]
    assert (row["day"], row["model"], row["measure"]) == ("2026-10-31", "gpt-4o", "input_tokens")
    assert (row["ledger"], row["export"], row["difference"]) == (10, 99, -89)
    code, text = reconcile(folder, openai(60, second=99))
    assert code == 1
    assert "1 of 4 figures are apart" in text
    assert "-89.90%" in text


def test_the_tolerance_is_a_share(folder: Path) -> None:
    assert reconcile(folder, openai(66), "--tolerance", "5%")[0] == 1
    assert reconcile(folder, openai(66), "--tolerance", "10%")[0] == 0
    code, text = reconcile(folder, openai(66), "--tolerance", "some")
    assert (code, "is no share" in text) == (2, True)


def test_costs_are_compared_as_far_as_they_are_told(folder: Path) -> None:
    """Rounded to cents, 0.003 is 0.00: half a cent is no difference."""
    lines = (
        "1,2,2026-10-30T00:00:00+00:00,x,0.003000009,usd,\"gpt-4o-2024-08-06, input\"\n"
        "1,2,2026-10-31T00:00:00+00:00,x,0.00,usd,\"gpt-4o-2024-08-06, output\"\n"
    )  # fmt: skip
    code, said = reconcile(folder, OPENAI_COST + lines, "--json", "--tolerance", "0%")
    assert code == 0, said
    assert {row["measure"] for row in said["rows"]} == {"cost_usd"}
    assert reconcile(folder, OPENAI_COST + lines.replace(",0.00,", ",0.02,"))[0] == 1


def test_names_for_people_are_models_too(folder: Path) -> None:
    lines = "2026-10-30,GPT 4o,Default,k,message,x,input_no_cache,0.003000009,0.003,token\n"
    code, said = reconcile(folder, ITS_COST + lines, "--json", "--until", "2026-10-31")
    assert code == 0, said
    assert said["form"] == "Anthropic's cost"


def test_every_class_of_input_counts(folder: Path) -> None:
    lines = "2026-10-30,gpt-4o,k,Default,standard,x,30,10,5,15,12\n2026-10-31,gpt-4o,k,Default,standard,x,10,0,0,0,5\n"
    code, said = reconcile(folder, ANTHROPIC + lines, "--json")
    assert code == 0, said


def test_a_cost_the_ledger_does_not_know_agrees_with_nothing(folder: Path) -> None:
    code, said = reconcile(folder, "d,m,c\n2026-10-30,mystery,0.00\n", "--columns", "day=d,model=m,cost=c", "--json")
    assert code == 1
    assert (said["rows"][0]["ledger"], said["rows"][0]["agrees"]) == (None, False)


def test_what_the_export_lacks_is_missing_where_the_provider_is_named(folder: Path) -> None:
    code, said = reconcile(folder, openai(60), "--provider", "a", "--json")
    assert code == 1
    assert {row["model"] for row in said["rows"] if row["export"] is None} == {"mystery"}


def test_by_id(folder: Path) -> None:
    text = "req,tin,tout\nrequest-0,10,5\nattempt-1,10,5\nrequest-3,10,6\nstranger,1,1\n"
    words = ("--columns", "id=req,input=tin,output=tout", "--json", "--until", "2026-10-31", "--tolerance", "0%")
    code, said = reconcile(folder, text, *words)
    apart = {(row["id"], row["measure"]) for row in said["rows"] if not row["agrees"]}
    assert code == 1
    assert {("request-3", "output_tokens"), ("stranger", "input_tokens"), ("stranger", "output_tokens")} <= apart
    assert not {each for each in apart if each[0] in ("request-0", "attempt-1")}


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("a,b\n1,2\n", [], "are of no known export"),
        ("d,c\n2026-10-30,x\n", ["--columns", "day=d,cost=c"], 'line 2: c: "x" is no number'),
        ("d,c\nsoon,1\n", ["--columns", "day=d,cost=c"], 'line 2: "soon" is no day'),
        ("d,c\n2026-10-30,1\n", ["--columns", "day=d,cost=e"], 'has no column "e"'),
        ("d,c\n2026-10-30,1\n", ["--columns", "day=d"], "nothing to compare"),
        ("d,c\n2026-10-30,1\n", ["--columns", "cost=c"], "neither a day nor an id"),
        ("d,c\n", ["--columns", "day=d,cost=c"], "holds no figures"),
        ("", [], "no known export"),
        ("d,c\n2026-10-30,NaN\n", ["--columns", "day=d,cost=c"], "is no number"),
        ("d,c\n2026-10-30,0e400000\n", ["--columns", "day=d,cost=c"], "is no number"),
        ("d,c\n0001-01-01T00:00:00+10:00,1\n", ["--columns", "day=d,cost=c"], "is no day"),
        pytest.param("d,c\n2026-10-30," + "1" * 200_000, ["--columns", "day=d,cost=c"], "field larger", id="long"),
    ],
)
def test_files_that_can_not_be_read_are_said(folder: Path, text: str, words: list[str], sentence: str) -> None:
    code, said = reconcile(folder, text, *words)
    assert code == 2
    assert sentence in said


def test_real_processes_and_no_secret(folder: Path) -> None:
    assert "NOT_SET_ANYWHERE" not in environment(folder, {})
    done = clawproxy(folder, "usage", "--json")
    assert (done.returncode, json.loads(done.stdout)["attempts"]) == (0, 5), done.stderr
    done = clawproxy(folder, "usage", "--by", "colour")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), "one line, and no traceback"
    (folder / "export.csv").write_text(openai())
    done = clawproxy(folder, "usage", "reconcile", "export.csv")
    assert (done.returncode, "are apart" in done.stdout) == (1, True)
