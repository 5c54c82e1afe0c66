"""K-01 to K-08: a key is nowhere but where it is used. The sweep over everything a run leaves is `test_canaries.py`."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import PipelineConfig
from clawproxy.dialects import PROVIDER
from clawproxy.hookspecs import Observe, hookimpl
from clawproxy.messages import Operation, Route
from clawproxy.ops import logs
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_request
from clawproxy.upstream import wire as providers
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import fetch
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import BASE, PROVIDERS
from tests.policy.test_answers_canary import MODELS
from tests.threats.kit import closed, document, leaks, longest_step, post, say

ROOT = Path(__file__).parents[2]
SECRETS = {"provider key": PROVIDER_KEY, "client key": KEY}
MISPLACED = "sk-typed-where-a-name-belongs-93b2e01f7c"
"""The logs and the books have it as that name."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with gateway(tmp_path) as running:
        yield running


def prompted(script: str, **changes: Any) -> bytes:
    return post(document(messages=[{"role": "user", "content": "hi"}], **changes))


ECHOES = [
    *(f'status {status} body {{"error":{{"message":"Incorrect API key provided: {PROVIDER_KEY}.","code":"{PROVIDER_KEY}"}}}}'
      for status in (400, 401, 403, 404, 413, 422, 429, 500, 503)),
    f"status 400 body {PROVIDER_KEY}",
    f"status 401 header x-key: {PROVIDER_KEY}",
    f"status 429 retry-after {PROVIDER_KEY}",
    f"redirect http://127.0.0.1:1/?key={PROVIDER_KEY}",
    f"error type {PROVIDER_KEY} code {PROVIDER_KEY} no such key {PROVIDER_KEY}",
    f"say one; error code invalid_api_key no such key {PROVIDER_KEY}",
    f"header x-request-id: {PROVIDER_KEY}; say one",
    f'raw "data: {PROVIDER_KEY}\\n\\n"',
    f'raw head "HTTP/1.1 200 {PROVIDER_KEY}\\r\\n{PROVIDER_KEY}\\r\\n\\r\\n"',
]  # fmt: skip


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_k01_a_provider_that_repeats_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str], dialect: str) -> None:
    """In the body of an error, a header, an event, the URL of a redirect: on no door, and not in the log."""
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for script in ECHOES:
            for stream in (False, True):
                running.forget_trouble()
                question = asking.HTTP[dialect](Ask("Go.", stream=stream), f"via-{dialect}")
                running.provider.will(script)
                async with await running.connect() as connection:
                    headers = {"authorization": f"Bearer {KEY}", **question.headers}
                    with trio.fail_after(10):
                        reply = await fetch(connection, "POST", question.path, headers=headers, body=question.body)
                said = json.dumps([reply.headers, reply.body.decode()])
                assert not leaks(said.encode(), SECRETS), (script[:60], stream)
                assert reply.headers["x-request-id"], "and the id is ours"
        running.forget_trouble()
        with trio.fail_after(5):
            await running.at_rest()
    assert not leaks(capfd.readouterr().err.encode(), SECRETS)


TYPES: tuple[type[BaseException], ...] = (
    ArithmeticError, AssertionError, AttributeError, BlockingIOError, BufferError, ConnectionResetError, EOFError, Exception,
    FileNotFoundError, ImportError, IndexError, InterruptedError, KeyError, LookupError, MemoryError, NameError,
    NotImplementedError,
    OSError, OverflowError, PermissionError, RecursionError, ReferenceError, RuntimeError, StopAsyncIteration, StopIteration,
    SyntaxError, SystemError, TimeoutError, TypeError, ValueError, ZeroDivisionError, SystemExit, KeyboardInterrupt,
)  # fmt: skip


class Raising:
    """Fails, in the hook it is told to, with an exception that holds the key, in a chain that does, beside locals that do."""

    def __init__(self) -> None:
        self.hook = ""
        self.kind: type[BaseException] = Exception

    def _perhaps(self, hook: str) -> None:
        if hook != self.hook:
            return
        held = f"Authorization: Bearer {PROVIDER_KEY}"
        try:
            raise ValueError(held)
        except ValueError:
            raise self.kind(held)  # noqa: B904 (the chain is the point)

    @hookimpl
    async def prepare_request(self, exchange: Any, request: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._perhaps("prepare_request")

    @hookimpl
    async def choose_route(self, exchange: Any, request: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._perhaps("choose_route")

    @hookimpl
    def open_attempt(self, exchange: Any, request: Any, route: Any, attempt: Any) -> None:
        self._perhaps("open_attempt")

    @hookimpl
    def tap_response(self, exchange: Any, route: Any, attempt: Any) -> Observe:
        self._perhaps("tap_response")
        return Observe(lambda batch: self._perhaps("see"), lambda: self._perhaps("end"))

    @hookimpl
    def attempt_finished(self, exchange: Any, attempt: Any) -> None:
        self._perhaps("attempt_finished")

    @hookimpl
    async def exchange_closed(self, exchange: Any, outcome: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._perhaps("exchange_closed")


HOOKS = ("prepare_request", "choose_route", "open_attempt", "tap_response", "see", "end", "attempt_finished", "exchange_closed")


async def test_k02_exceptions_that_hold_a_key_do_not_tell_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raising = Raising()
    order = ("audit", "auth", "raising", "router", "meter")
    async with gateway(tmp_path, plugins={"raising": raising}, pipeline=PipelineConfig(order=order)) as running:
        for hook in HOOKS:
            for kind in TYPES if hook in ("prepare_request", "open_attempt") else TYPES[::6]:
                raising.hook, raising.kind = hook, kind
                for stream in (False, True) if kind is ValueError else (False,):
                    answer = await say(running.address, post(document(stream=stream)))
                    assert answer.status in ((200, 500) if hook != "choose_route" else (200, 503)), (hook, kind)
                    assert not leaks(answer.data, SECRETS), (hook, kind)
        raising.hook = ""
        async with closed(running):
            pass
    log = capfd.readouterr().err
    assert not leaks(log.encode(), SECRETS)
    assert "raising" in log, "but who failed is told"
    assert "ValueError" in log


def test_k02_a_secret_prints_as_stars() -> None:
    secret = Secret(PROVIDER_KEY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>50}",
        repr({"a": [secret]}),
        logs._json({"a": secret}),
    ]
    assert not leaks(" ".join(shown).encode(), SECRETS)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert not hasattr(secret, "__dict__")


def test_k03_no_key_stands_in_a_url() -> None:
    """No dialect's path has room for one, and no template of the configuration says so."""
    operations: tuple[Operation, ...] = ("chat", "embeddings", "count_tokens")
    for name, dialect in PROVIDER.items():
        for operation in operations:
            try:
                outbound = dialect.encode_request(make_request("hi", operation=operation), Route(name, "m"))
            except Exception:
                continue
            assert not re.search(r"[?&](api[_-]?)?key=|token=|secret=", outbound.path, re.IGNORECASE), outbound.path
    for path in [*(ROOT / "clawproxy").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"https?://[^\s\"']*[?&](api[_-]?)?key=(?!x\b)[^\s\"'&]", path.read_text()), path


async def test_k03_gemini_gets_its_key_in_a_header(tmp_path: Path) -> None:
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for name in PROVIDERS:
            answer = await say(running.address, post(document(model=f"via-{name}")))
            assert answer.status == 200, name
            entry = running.provider.log.last
            assert not leaks(entry.target.encode() + entry.body_bytes, SECRETS)
            assert entry.credential


async def test_k04_no_label_holds_a_key(tmp_path: Path, running: Running) -> None:
    for script in (*ECHOES[:4], "say fine"):
        running.forget_trouble()
        running.provider.will(script)
        await say(running.address, prompted(script))
    await say(running.address, post(document(model=MISPLACED)))
    await say(running.address, post(document(), headers={"Authorization": "Bearer " + KEY[:-1]}))
    await say(running.address, post(document(), f"/{KEY}"))
    host, _, port = running.admin.removeprefix("http://").rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        text = (await fetch(stream, "GET", "/metrics", headers={"host": "localhost"})).body
    assert text.count(b"\n") > 20
    assert not leaks(text, {**SECRETS, "a key as a model's name": MISPLACED})


async def test_k05_an_error_of_any_size_is_read_for_64_kib(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """114 MB of error body (as once took a gateway down): answered at once, the connection let go, nobody held up."""
    read = 0
    receive = providers.Wire.receive_nowait

    def receive_nowait(self: providers.Wire) -> bytes | None:
        nonlocal read
        data = receive(self)
        read += len(data or b"")
        return data

    running.provider.will("status 400 size 114MiB")
    async with closed(running, calls=1):
        monkeypatch.setattr(providers.Wire, "receive_nowait", receive_nowait)
        with trio.fail_after(5), longest_step() as step:
            answer = await say(running.address, prompted(""))
        monkeypatch.setattr(providers.Wire, "receive_nowait", receive)
        assert 0 < read <= 3 * 64 * 1024, "of which the last read may be a whole one"
        assert step.seconds < 0.05
        assert answer.status in (400, 502)
        assert len(answer.data) < 4096
    with trio.fail_after(5):
        await running.provider.log.wait_for(lambda log: log.in_progress == 0)
    assert running.provider.log.bytes_sent < 20 * 1024 * 1024


class Nosy:
    """Prints whatever it is given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _note(self, *things: object) -> None:
        for thing in things:
            self.seen.append(repr(thing))
            self.seen += [
                repr(getattr(thing, name, None)) for name in dir(thing) if not name.startswith("__") and name != "token"
            ]

    @hookimpl
    async def authenticate(self, credentials: Any, app: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._note(credentials, app, app.config, *app.config.providers.values(), *app.config.keys.values())

    @hookimpl
    async def prepare_request(self, exchange: Any, request: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._note(exchange, request)

    @hookimpl
    def tap_response(self, exchange: Any, route: Any, attempt: Any) -> Observe:
        self._note(exchange, route, attempt)
        return Observe(lambda batch: self._note(batch, *batch.events))

    @hookimpl
    def attempt_finished(self, exchange: Any, attempt: Any) -> None:
        self._note(exchange, attempt)

    @hookimpl
    async def exchange_closed(self, exchange: Any, outcome: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._note(exchange, outcome)


async def test_k06_what_a_plugin_is_given_holds_no_key(tmp_path: Path) -> None:
    """The token goes to `authenticate`, and `repr` does not show it; no provider's key goes to any hook."""
    nosy = Nosy()
    order = ("nosy", "audit", "auth", "router", "meter")
    async with gateway(tmp_path, plugins={"nosy": nosy}, pipeline=PipelineConfig(order=order)) as running:
        for stream in (False, True):
            assert (await say(running.address, post(document(stream=stream)))).status == 200
    assert len(nosy.seen) > 100
    assert not leaks("\n".join(nosy.seen).encode(), SECRETS)


def test_k06_the_log_takes_listed_fields_only() -> None:
    """What is not on the list stays out whatever its name; tests/ops/test_ops_logs.py has the rest."""
    assert not {"body", "prompt", "content", "headers", "authorization", "token", "api_key", "secret", "password"} & logs.FIELDS


def test_k08_core_dumps_are_spoken_of() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    assert "RLIMIT_CORE" in page
    assert "LimitCORE=0" in page
    assert "memory" in page
