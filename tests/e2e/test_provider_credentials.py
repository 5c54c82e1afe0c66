"""Provider credentials that expire, are revoked, and come from elsewhere, under load through the whole gateway (B5, B6).

`CLAW_OAUTH_SECONDS` is how long the load lasts (2.5), `CLAW_OAUTH_LIFE` how long a token is good (1): 60 and 5 is the full form.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import attrs
import pytest
import trio
import trustme

from clawproxy.config import OAuthConfig, ProviderConfig, SecretRef
from clawproxy.upstream import fetched
from clawproxy.upstream.renewal import Unobtainable
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat

pytestmark = pytest.mark.timed

SECONDS = float(os.environ.get("CLAW_OAUTH_SECONDS", "2.5"))
LIFE = float(os.environ.get("CLAW_OAUTH_LIFE", "1"))
RATE = 200
CLIENTS = 10
AUTHORITY = trustme.CA()
SECRET = "s3cret/with+signs"


@attrs.define(eq=False)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answering = Callable[[Request], Awaitable[tuple[int, Any]]]


async def read_request(stream: trio.abc.Stream, data: bytes) -> tuple[Request, bytes] | None:
    while b"\r\n\r\n" not in data:
        more = bytes(await stream.receive_some(65536))
        if not more:
            return None
        data += more
    head, _, data = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(data) < length:
        data += bytes(await stream.receive_some(65536))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, data[:length]), data[length:]


@asynccontextmanager
async def serving(answer: Answering, tls: bool = False) -> AsyncIterator[str]:
    """A server on a port of its own: its address."""

    async def serve(stream: trio.abc.Stream) -> None:
        data = b""
        try:
            while (got := await read_request(stream, data)) is not None:
                request, data = got
                status, said = await answer(request)
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                await stream.send_all(head.encode() + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            AUTHORITY.issue_cert("localhost").configure_cert(context)
            [secure] = await nursery.start(partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1"))
            yield f"https://localhost:{secure.transport_listener.socket.getsockname()[1]}"
        else:
            [plain] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{plain.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Issuer:
    """An authorization server and a provider that believes it."""

    life: float = LIFE
    issued: list[tuple[float, str]] = attrs.field(factory=list)
    """When, and which token."""
    asked: list[tuple[dict[str, str], dict[str, str]]] = attrs.field(factory=list)
    """Headers and form of each request for a token."""
    calls: int = 0
    refused: int = 0
    used: set[str] = attrs.field(factory=set)
    revoked: set[str] = attrs.field(factory=set)
    down: bool = False
    refresh: str | None = None
    """The refresh token that is good, and is replaced at each use."""

    async def token(self, request: Request) -> tuple[int, Any]:
        form = dict(parse_qsl(request.body.decode()))
        self.asked.append((request.headers, form))
        await trio.sleep(0.01)
        if self.down:
            return 503, {"error": "temporarily_unavailable"}
        said: dict[str, Any] = {"token_type": "Bearer", "expires_in": self.life}
        if self.refresh is not None:
            if form.get("refresh_token") != self.refresh:
                return 400, {"error": "invalid_grant", "error_description": SECRET}
            self.refresh = said["refresh_token"] = f"refresh-{len(self.issued)}"
        token = f"token-{len(self.issued)}"
        self.issued.append((time.monotonic(), token))
        return 200, {**said, "access_token": token}

    async def provide(self, request: Request) -> tuple[int, Any]:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        token = request.headers["authorization"].removeprefix("Bearer ")
        self.used.add(token)
        good = any(token == name and time.monotonic() < at + self.life for at, name in self.issued)
        if not good or token in self.revoked:
            self.refused += 1
            return 401, {"error": {"message": "expired", "type": "authentication_error"}}
        return 200, ANSWER


ANSWER = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


@asynccontextmanager
async def world(tmp_path: Path, issuer: Issuer, **oauth: Any) -> AsyncIterator[Running]:
    ca_file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca_file))
    async with serving(issuer.token, tls=True) as login, serving(issuer.provide) as provider:
        values: dict[str, Any] = {"client_secret": SecretRef("", SECRET), "scope": "llm", "ca_file": ca_file} | oauth
        settings = ProviderConfig(base_url=f"{provider}/v1", oauth=OAuthConfig(f"{login}/token", "gate way", **values))
        async with gateway(tmp_path, providers={"scripted": settings}) as running:
            yield running


async def ask(running: Running) -> Reply:
    with trio.fail_after(10):
        async with await running.connect() as stream:
            return await chat(stream, "hello", key=KEY)


async def test_tokens_that_expire_under_load(tmp_path: Path) -> None:
    """No request fails, none is even refused by the provider, and each token is renewed once."""
    issuer, statuses = Issuer(), []
    async with world(tmp_path, issuer) as running:
        ends = trio.current_time() + SECONDS

        async def client(number: int) -> None:
            async with await running.connect() as stream:
                due = trio.current_time() + number / RATE
                while due < ends:
                    await trio.sleep_until(due)
                    statuses.append((await chat(stream, "hello", key=KEY)).status)
                    due += CLIENTS / RATE

        with trio.fail_after(SECONDS * 3 + 10):
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(client, number)
    assert statuses.count(200) == len(statuses) >= RATE * SECONDS * 0.9
    assert issuer.refused == 0
    times = [at for at, _ in issuer.issued]
    assert len(times) >= SECONDS / LIFE
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap > LIFE * 0.4 for gap in gaps), gaps
    assert len(issuer.asked) == len(issuer.issued), "one request each"
    print(f"{len(statuses)} requests, {statuses.count(200)} answered; {len(times)} tokens; {issuer.refused} refusals")


async def test_what_the_authorization_server_is_asked(tmp_path: Path) -> None:
    issuer = Issuer(life=60)
    async with world(tmp_path, issuer) as running:
        assert issuer.asked == [], "nothing is asked before a client asks"
        assert (await ask(running)).status == 200
        [(headers, form)] = issuer.asked
        assert form == {"grant_type": "client_credentials", "scope": "llm"}
        said = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
        assert said == "gate%20way:s3cret%2Fwith%2Bsigns"
    issuer = Issuer(life=60)
    async with world(tmp_path, issuer, client_auth="post", audience="https://api") as running:
        assert (await ask(running)).status == 200
        [(headers, form)] = issuer.asked
        assert "authorization" not in headers
        assert form == {
            "grant_type": "client_credentials", "scope": "llm", "audience": "https://api", "client_id": "gate way",
            "client_secret": SECRET,
        }  # fmt: skip


async def test_a_refresh_token_that_is_replaced_at_each_use(tmp_path: Path) -> None:
    issuer = Issuer(life=60, refresh="first")
    file = tmp_path / "refresh"
    file.write_text("first\n")
    options = {"client_secret": None, "refresh_token": SecretRef("file", str(file)), "scope": None}
    async with world(tmp_path, issuer, **options) as running:
        assert (await ask(running)).status == 200
        for number in range(2):
            issuer.revoked.add(f"token-{number}")
            renewal = running.server.gateway.current.upstream._providers["scripted"].renewals[0]  # type: ignore[attr-defined]
            renewal._early_at = -1e9
            assert (await ask(running)).status == 200
        assert [form["refresh_token"] for _, form in issuer.asked] == ["first", "refresh-0", "refresh-1"]
        assert form_of(issuer) == {"grant_type": "refresh_token", "refresh_token": "refresh-1", "client_id": "gate way"}
        issuer.refresh = "second"  # somebody logged in again
        file.write_text("second\n")
        issuer.revoked.add("token-2")
        renewal._early_at = -1e9
        assert (await ask(running)).status == 200
        assert form_of(issuer)["refresh_token"] == "second"


def form_of(issuer: Issuer) -> dict[str, str]:
    return issuer.asked[-1][1]


async def test_a_token_that_is_revoked_fails_no_request(tmp_path: Path) -> None:
    """Twenty requests meet the refusal; one renewal, and all are answered. The next is refused, too: it is not asked again."""
    issuer, replies = Issuer(life=3600), []
    async with world(tmp_path, issuer) as running:
        assert (await ask(running)).status == 200
        issuer.revoked.add("token-0")

        async def one() -> None:
            replies.append((await ask(running)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert replies == [200] * 20
        assert len(issuer.issued) == 2
        issuer.revoked.add("token-1")
        assert [(await ask(running)).status for _ in range(3)] == [502] * 3
        assert len(issuer.issued) == 2


async def test_a_server_that_is_down_fails_nothing_while_the_token_is_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(life=1.6)
    async with world(tmp_path, issuer) as running:
        assert (await ask(running)).status == 200
        issuer.down = True
        for _ in range(14):
            assert (await ask(running)).status == 200
            await trio.sleep(0.1)
        issuer.down = False
        assert len(issuer.asked) > 1, "it was tried"
        await trio.sleep(0.5)
        assert (await ask(running)).status == 200
        assert len(issuer.issued) == 2
    written = caplog.text
    assert "the authorization server answered 503" in written
    for secret in (SECRET, "token-0", "token-1", base64.b64encode(SECRET.encode()).decode()):
        assert secret not in written


async def test_a_secret_the_server_does_not_know(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(life=60, refresh="another")
    async with world(tmp_path, issuer, refresh_token=SecretRef("", "wrong-refresh-token")) as running:
        reply = await ask(running)
        assert reply.status == 502
        assert b"wrong-refresh" not in reply.body
        assert issuer.calls == 0
    written = caplog.text + "".join(capfd.readouterr())
    assert "invalid_grant" in written
    assert "wrong-refresh-token" not in written
    assert SECRET not in written, "nor does the server's description"


# --- what is kept elsewhere ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping(tmp_path: Path, ref: SecretRef, good: list[str], **changes: Any) -> AsyncIterator[Running]:
    """A gateway whose provider takes the first of `good`."""

    async def provide(request: Request) -> tuple[int, Any]:
        await trio.lowlevel.checkpoint()
        if request.headers["authorization"] == f"Bearer {good[0]}":
            return 200, ANSWER
        return 401, {"error": {"message": "no"}}

    async with serving(provide) as provider:
        settings = ProviderConfig(base_url=f"{provider}/v1", api_key=ref, **changes)
        async with gateway(tmp_path, providers={"scripted": settings}) as running:
            yield running


async def test_a_file_that_changes_is_taken_over_without_a_failed_request(tmp_path: Path) -> None:
    file, good = tmp_path / "key", ["first-key"]
    file.write_text("first-key\n")
    async with keeping(tmp_path, SecretRef("file", str(file)), good) as running:
        assert (await ask(running)).status == 200
        file.write_text("second-key\n")
        good[0] = "second-key"
        assert (await ask(running)).status == 200


def script(tmp_path: Path, text: str) -> SecretRef:
    file = tmp_path / "source.py"
    file.write_text(text)
    return SecretRef("command", f"{sys.executable} -S '{file}' 'an argument'")


async def test_a_command(tmp_path: Path) -> None:
    kept, good = tmp_path / "kept", ["one"]
    kept.write_text("one")
    text = f"import sys\nassert sys.argv[1] == 'an argument'\nassert not sys.stdin.read()\nprint(open({str(kept)!r}).read())"
    async with keeping(tmp_path, script(tmp_path, text), good) as running:
        assert (await ask(running)).status == 200
        kept.write_text("two")
        good[0] = "two"
        assert (await ask(running)).status == 200, "refused, and run again"


async def test_a_command_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """Most are scripts around another program: a source that hangs would leave one behind at each attempt."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(60)"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetched.from_command, script(tmp_path, text).value)
            while not (pid.exists() and pid.read_text().endswith(" ")):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        stat = Path(f"/proc/{pid.read_text().strip()}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.stderr.write('CANARY-1234'); sys.exit(3)", "ended with status 3"),
        ("print('CANARY-1234\\nCANARY-1234')", "characters no header may carry"),
        ("pass", "is empty"),
        ("print('CANARY-1234' * 10000)", "more than 64 KiB"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
async def test_a_command_that_brings_nothing(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetched, "SECONDS", 0.5)
    with pytest.raises(Unobtainable, match=said) as caught:
        await fetched.from_command(script(tmp_path, text).value)
    written = "".join(capfd.readouterr()) + str(caught.value)
    assert "CANARY" not in written
    assert "an argument" not in written
