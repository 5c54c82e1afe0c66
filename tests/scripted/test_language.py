"""The script language: what is written is what is read, and mistakes are explained."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.scripted import (
    BadJson,
    Begin,
    Burst,
    Chunk,
    Close,
    CloseAtReuse,
    CloseIdle,
    Comment,
    Cut,
    Drip,
    Echo,
    End,
    ErrorEvent,
    Finish,
    Framing,
    Head,
    Header,
    NoDone,
    Pace,
    Pause,
    Raw,
    RawHead,
    Reasoning,
    Redirect,
    RefuseText,
    Reply,
    Reset,
    Say,
    Script,
    ScriptError,
    Split,
    Stall,
    Status,
    Step,
    Tokens,
    ToolCall,
    UnknownEvent,
    Usage,
    as_script,
    find_script,
    parse,
)
from clawproxy.scripted.grammar import GRAMMAR

texts = st.text(st.characters())  # any code point, lone surrogates too
words = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
seconds = st.floats(0, 86_400, allow_nan=False)
sizes = st.integers(1, 1024 * 1024 * 1024)
counts = st.integers(-(10**17), 10**17)
values = st.from_regex(r"[!-~\x80-\xff]([ \t!-~\x80-\xff]{0,8}[!-~\x80-\xff])?", fullmatch=True) | st.just("")
names = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,10}", fullmatch=True)
json_objects = st.sampled_from(["{}", '{"a": "x;y\\n"}', '{\n "a": [1, {"b": null}]\n}', '{"a', "not json", "[1]", ' {"a": 1}'])

settings = st.one_of(
    st.builds(Chunk, st.integers(1, 10_000)), st.builds(Pace, seconds), st.just(Burst()), st.builds(Pause, seconds),
    st.just(NoDone()), st.builds(Split, sizes), st.builds(Drip, sizes, seconds), st.just(Close()), st.builds(CloseIdle, seconds),
    st.just(CloseAtReuse()), st.builds(Cut, sizes), st.builds(Reset, sizes),
    st.builds(Usage, counts, counts, counts, counts, st.sampled_from(["plain", "absurd", "negative", "contradictory", "missing"]),
              st.sampled_from(["end", "now", "late", "always"])),
)  # fmt: skip
heads = st.one_of(st.builds(Header, names, values), st.builds(Framing, st.sampled_from(["chunked", "close"])))
content = st.one_of(
    st.builds(Say, texts, st.booleans()), st.builds(Tokens, st.integers(0, 1_000_000), seconds), st.just(Echo()),
    st.just(Reply()),
    st.builds(Reasoning, texts), st.builds(RefuseText, texts), st.builds(ToolCall, words, json_objects | texts),
    st.builds(Finish, words), st.builds(ErrorEvent, texts, words, st.none() | words), st.builds(Raw, st.binary()),
    st.builds(Comment, texts), st.just(BadJson()), st.just(UnknownEvent()),
)  # fmt: skip
statuses = st.builds(
    lambda code, retry, pairs, body, size: Status(code, body, size if body is None else None, retry, tuple(pairs)),
    st.integers(200, 599), st.none() | values, st.lists(st.tuples(names, values), max_size=2), st.none() | texts,
    st.none() | sizes,
)  # fmt: skip
ends = st.one_of(st.just(Stall()), st.just(Cut()), st.just(Reset()), st.builds(End, st.booleans()))
quiet = st.one_of(settings, heads)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    steps: list[Step] = draw(st.lists(quiet, max_size=4))
    kind = draw(st.sampled_from(["status", "redirect", "answer"]))
    if kind == "status":
        return Script((*steps, draw(statuses)))
    if kind == "redirect":
        return Script((*steps, Redirect(draw(values))))
    openings: list[tuple[Step, ...]] = [(), (Head(2.5),), (RawHead(b"HTTP/1.1 200 OK\r\n\r\n"),), (Head(), Begin())]
    opening = draw(st.sampled_from(openings))
    middle = draw(st.lists(content | settings, max_size=6))
    return Script((*steps, *opening, *middle, draw(ends)))


@given(scripts())
def test_a_rendered_script_reads_back_as_itself(script: Script) -> None:
    assert parse(str(script)) == script


@given(scripts())
def test_steps_may_stand_on_lines_of_their_own(script: Script) -> None:
    text = "# a comment; not a step\r\n" + "\r\n".join(map(str, script.steps)) + "\n\n"
    assert parse(text) == script


@given(st.text(st.sampled_from('sayendpuhtol "\\;{}#\n\r\t0123mx'), max_size=60))
def test_any_text_is_a_script_or_a_script_error(text: str) -> None:
    try:
        script = parse(text)
    except ScriptError:
        return
    assert parse(str(script)) == script


def test_the_example_of_the_docs() -> None:
    script = parse('say Hello world; pause 200ms; say " and more"; usage 12 9; end')
    assert script == Script.of("Hello world", Pause(0.2), Say(" and more"), Usage(12, 9), End())


def test_a_bare_text_ends_at_its_line_and_keeps_other_spaces() -> None:
    assert parse("say a\u2028b\u00a0\nend") == Script((Say("a\u2028b\u00a0"), End()))


def test_bytes_keep_escapes_as_single_bytes() -> None:
    assert parse(r"raw \xff\xe2\x82\xac€\u20ac\;").steps == (Raw(b"\xff" + "€€€;".encode()),)


@pytest.mark.parametrize(
    ("text", "step", "says"),
    [
        ("", 0, "empty"),
        ("  \n# nothing\n", 0, "empty"),
        ("sya hello", 1, "did you mean `say TEXT`?"),
        ("say hello; world", 2, "`world` is not a step"),
        ("say", 1, "the text is missing"),
        ("pause 5", 1, "`5` is not a duration"),
        ("pause 90000s", 1, "from 0 to 86400 seconds"),
        ("pause", 1, "write `pause D`"),
        ("pause 1s 2s", 1, "`2s` is too much"),
        ("tokens many", 1, "not a whole number"),
        ("tokens 2000000", 1, "from 0 to 1000000"),
        ("tokens 3 each 1s", 1, "`every`"),
        ("chunk 0", 1, "from 1 to"),
        ('say "open', 1, "does not end"),
        (r"say \q", 1, r"`\q` is not an escape"),
        (r"say \U00ffffff", 1, "not an escape"),
        ("say back\\\nend", 1, "backslash"),
        ('say ""x', 1, "too much"),
        ('tool f {"a', 1, "quote them"),
        ("tool", 1, "the tool's name is missing"),
        ('tool f {"a": ' + "[" * 100_000, 1, "not whole JSON"),
        ("stall; say x", 2, "can never run: step 1 (`stall`)"),
        ("cut; end", 2, "can never run"),
        ("say x; status 400", 2, "comes too late"),
        ("say x; header a: b", 2, "comes too late"),
        ("begin; begin", 2, "begun already"),
        ("status 99", 1, "from 200 to 599"),
        ("status 400 size 1MiB body x", 1, "not both"),
        ("status 400 boddy x", 1, "`status` takes"),
        ("status 400 size lots", 1, "not a size"),
        ("header a:b", 1, "a blank after the colon"),
        (r'header a: "x\r\ny: z"', 1, "visible characters"),
        (r"redirect http://x/\r\nset-cookie:\x20a", 1, "visible characters"),
        ("header é: x", 1, "token"),
        ("usage", 1, "figures are missing"),
        ("usage 5", 1, "output tokens is missing"),
        ("usage 1 2 wrong", 1, "`usage` takes"),
        ("drip 3", 1, "`every`"),
        ("framing length", 1, "one of chunked, close"),
        ("no good", 1, "goes on with `done`"),
        ("close at dawn", 1, "goes on with `reuse`"),
        ("finish a/b", 1, "one word"),
        ("end;" * 10_001, 0, ""),
    ],
)
def test_a_bad_script_names_the_step_and_what_would_be_right(text: str, step: int, says: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert caught.value.step == step or text.startswith("end;")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "make",
    [lambda: Pause(math.inf), lambda: Pause(-1), lambda: Usage(), lambda: Usage(1), lambda: Header("a b", "x"), lambda: Chunk(0)],
)  # fmt: skip
def test_a_step_checks_its_values_in_python_too(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError):
        make()


def test_not_a_step_is_refused() -> None:
    with pytest.raises(ScriptError, match="step 2: int is not a step"):
        Script((Say("x"), 5))  # type: ignore[arg-type]


def test_as_script_takes_every_form() -> None:
    assert as_script("say x") == as_script(Say("x")) == as_script(Script.of("x"))


def test_each_form_in_the_grammar_begins_with_its_keyword() -> None:
    assert all(form.split(" ")[0] == keyword for keyword, (form, _) in GRAMMAR.items())


@pytest.mark.parametrize(
    ("prompt", "script"),
    [
        ("hello", None),
        ("my script: is not one", None),
        ("Please.\nscript: say a; end", " say a; end"),
        ("script:\nsay a\nend", "\nsay a\nend"),
        ("Look:\n```script\nsay a\nend\n```\nthanks", "say a\nend\n"),
        ("```python\nx\n```", None),
    ],
)
def test_a_prompt_may_hold_a_script(prompt: str, script: str | None) -> None:
    assert find_script(prompt) == script
