"""I-01 to I-08: what a client or a provider says never becomes a path, a header, a line or an event of somebody else's."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.config import PipelineConfig
from clawproxy.events import Event, Text
from clawproxy.hookspecs import Transform, hookimpl
from clawproxy.http1 import response
from clawproxy.scripted import Say, Script
from tests.e2e.harness import PROVIDER_KEY, Running, gateway
from tests.matrix.expected import BASE
from tests.threats.kit import SAID, closed, document, post, say

NAMES = ("../../admin", "gpt-4?key=x", "gpt-4#", "gpt-4%2f..%2f", "gpt-4\r\nX: y", "\u2028", "x" * 10_240, "é", "\0", ".", "")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with gateway(tmp_path) as running:
        yield running


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
async def test_i01_a_models_name_is_looked_up_and_no_more(running: Running, name: str) -> None:
    async with closed(running):
        answer = await say(running.address, post(document(model=name)))
    assert (answer.status, answer.code) == (404, "model_not_found") or (answer.status == 400 and name in ("", "\0"))


async def test_i01_where_any_model_goes_to_the_provider_its_name_stays_in_its_place(tmp_path: Path) -> None:
    """Without `[models]` the name is the provider's own business: still one segment of Gemini's path, or a string of the body."""
    async with gateway(tmp_path, models={}, dialects=BASE) as running:
        for name in NAMES:
            before = running.provider.log.requests
            answer = await say(running.address, post(document(model=f"gemini/{name}")))
            assert answer.status in (200, 400, 404, 502), name
            for entry in list(running.provider.log.entries)[before - running.provider.log.requests :]:
                if running.provider.log.requests > before:
                    assert entry.target.startswith("/v1beta/models/"), entry.target
                    assert entry.target.count("/") == 3
                    assert "?key" not in entry.target
                    assert not set(entry.target) & set("\r\n# ")
        assert not running.provider.log.malformed


@pytest.mark.parametrize(
    "text", ["a\r\nAuthorization: Bearer x", "a\nb", "a\0b", "é", "\x1b[2J", "\x7f", " a ", "a\u2028b"], ids=ascii
)
async def test_i02_metadata_becomes_no_header(running: Running, text: str) -> None:
    """What could break a line is refused; nothing is a 500, and nothing of it is in a head that goes up or comes back."""
    refused = any(character in text for character in "\r\n\0")
    for changes in ({"metadata": {"user": text}}, {"user": text}):
        answer = await say(running.address, post(document(**changes)))
        async with closed(running):
            pass
        assert answer.status in ((400,) if refused and "metadata" in changes else (200, 400)), answer.head
        assert "Bearer x" not in answer.head
        for entry in running.provider.log.entries:
            assert not [value for _, value in entry.headers if len(text.strip()) > 1 and text.strip() in value]


async def test_i02_a_clients_own_request_id_is_no_way_in_either(running: Running) -> None:
    for value in ("é", "\x80\xff", "a" * 5000, "%0d%0aX: y", '"><script>'):
        answer = await say(running.address, post(document(), headers={"x-request-id": value}))
        assert answer.status in (200, 400, 431)
        assert "script>" not in answer.head.replace("content-type", "")


async def test_i03_no_header_of_a_client_goes_up(running: Running) -> None:
    sent = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "evil.test",
        "Forwarded": "for=1.2.3.4",
        "X-Claw-Tenant": "other",
        "OpenAI-Organization": "org-other",
        "OpenAI-Project": "proj-other",
        "OpenAI-Beta": "mine",
        "Cookie": "session=mine",
        "X-Stainless-Lang": "python",
        "User-Agent": "mine/1.0",
        "Referer": "http://mine.test/",
        "TE": "trailers",
    }
    async with closed(running, calls=3):
        for nominated in ("Authorization, close", "X-Claw-Tenant, close", "keep-alive, close, x-forwarded-for"):
            answer = await say(running.address, post(document(), headers={**sent, "Connection": nominated}))
            assert answer.status == 200
            seen = dict(running.provider.log.last.headers)
            assert not {name.lower() for name in seen} & {name.lower() for name in sent} - {"user-agent"}
            assert "mine" not in " ".join(seen.values())
            assert "1.2.3.4" not in " ".join(seen.values())
    both = await say(running.address, post(document(), headers={"x-api-key": "sk-another"}))
    assert (both.status, both.code) == (400, "auth.ambiguous")


ODD = ["Bad\x1b[2J", "x\u00e9", "", "OK OK OK", "A" * 4000]


@pytest.mark.parametrize("reason", ODD, ids=lambda reason: ascii(reason)[:12])
async def test_i04_a_providers_reason_is_not_repeated(running: Running, reason: str) -> None:
    head = json.dumps(f"HTTP/1.1 400 {reason}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}")
    prompt = {"role": "user", "content": f"script: raw head {head}"}
    answer = await say(running.address, post(document(messages=[prompt])))
    assert answer.statuses in ([400], [502])
    assert answer.phrase == response.PHRASES[answer.status]
    assert "\x1b" not in answer.data.decode("latin-1")


def test_i04_nobody_can_hand_a_reason_to_the_writer() -> None:
    for name, function in inspect.getmembers(response, inspect.isfunction):
        assert not {"reason", "phrase"} & set(inspect.signature(function).parameters), name
    with pytest.raises(ValueError):
        response.whole(200, [("x-a", "a\r\nSet-Cookie: a=b")], b"")


async def test_i05_a_providers_headers_stay_there(running: Running) -> None:
    headers = {
        "Set-Cookie": "a=planted",
        "Location": "https://planted.test/",
        "X-Api-Key": PROVIDER_KEY,
        "Server": "planted",
        "X-Powered-By": "planted",
        "Strict-Transport-Security": "planted",
        "Access-Control-Allow-Origin": "planted",
        "Link": "<planted>",
        "Alt-Svc": "planted",
    }
    script = "".join(f"header {name}: {value}; " for name, value in headers.items())
    async with closed(running, calls=2):
        for stream in (True, False):
            prompt = {"role": "user", "content": f"script: {script}say fine"}
            answer = await say(running.address, post(document(messages=[prompt], stream=stream)))
            assert answer.status == 200
            assert "planted" not in answer.head
            assert PROVIDER_KEY not in answer.data.decode()
            assert not {line.partition(":")[0] for line in answer.head.lower().split("\r\n")} & {n.lower() for n in headers}


@pytest.mark.parametrize(
    "fields",
    [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "x-large: " + "a" * 92_160 + "\r\n",
        "x-a: b\r\n folded\r\n",
        "x a: b\r\n",
        "\x00: b\r\n",
    ],
    ids=lambda text: ascii(text)[:30],
)
async def test_i05_a_head_that_is_none_is_the_providers_fault(running: Running, fields: str) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{fields}\r\nhello"
    running.provider.will(f"raw head {json.dumps(head)}")
    answer = await say(running.address, post(document(messages=[{"role": "user", "content": "hi"}])))
    assert answer.status == 502
    async with closed(running):
        pass


async def test_i06_a_redirect_is_not_followed(running: Running) -> None:
    """SS-04 as well: neither to another origin nor to the metadata service; nobody gets the key by it."""
    visited: list[object] = []
    async with trio.open_nursery() as nursery:

        async def visit(stream: trio.SocketStream) -> None:
            visited.append(await stream.receive_some())

        [listener] = await nursery.start(partial(trio.serve_tcp, visit, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with closed(running, calls=4):
            for where in (f"http://127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/"):
                for script in (f"redirect {where}", f"status 302 header Location: {where}"):
                    answer = await say(
                        running.address, post(document(messages=[{"role": "user", "content": f"script: {script}"}]))
                    )
                    assert (answer.status, answer.code) == (502, "provider_error.redirect")
                    assert where not in answer.data.decode()
        nursery.cancel_scope.cancel()
    assert not visited


TEXTS = [
    "\n\ndata: [DONE]\n\n", "a\rb", "\r\n\r\nevent: error\r\n", "\u2028\u2029", "\u0085", "\x1c\x1d\x1e", "\x0b\x0c", "\0",
    ": comment\n\n", "id: 1\nretry: 1\n\n", "\ufeffdata: x", "\x1b[2J", "</script>", "\\n\\n", '"}]}\n\ndata: {"a":"',
]  # fmt: skip


class Repeat:
    """Writes every answer anew, so that none goes out as its provider wrote it."""

    @hookimpl
    def tap_response(self, exchange: Any, route: Any, attempt: Any) -> Transform:
        def change(events: Sequence[Event]) -> list[Event]:
            return [Text(event.text) if isinstance(event, Text) else event for event in events]

        return Transform(change, streams="per_batch")


@pytest.mark.parametrize("anew", [False, True], ids=["as it came", "written anew"])
async def test_i07_no_text_is_more_than_one_event(tmp_path: Path, anew: bool) -> None:
    order = ("audit", "auth", "router", "meter", *(("repeat",) if anew else ()))
    async with (
        gateway(tmp_path, plugins={"repeat": Repeat()}, pipeline=PipelineConfig(order=order)) as running,
        closed(running, calls=2 * len(TEXTS)),
    ):
        for text in TEXTS:
            prompt = {"role": "user", "content": "hi"}
            running.provider.will(_chunk(text))
            answer = await say(running.address, post(document(messages=[prompt], stream=True)))
            events = answer.events()
            assert events[-1] == "[DONE]"
            assert events.count("[DONE]") == 1
            told = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
            assert "".join(told) == text
            assert len([piece for piece in told if piece]) == 1
            running.provider.will(_chunk(text))
            body = {"model": "test-model", "max_tokens": 9, "messages": [prompt], "stream": True}
            answer = await say(running.address, post(body, "/v1/messages"))
            deltas = [json.loads(event).get("delta", {}) for event in answer.events()]
            assert [delta["text"] for delta in deltas if delta.get("type") == "text_delta"] == [text]


def _chunk(text: str) -> Script:
    return Script((Say(text, whole=True),))


CHUNK = (
    'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    '"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
)
WHOLE = (
    '{"id":"c","object":"chat.completion","created":1,"model":"m","choices":'
    '[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"%s"}}]}'
)


async def test_i08_what_is_no_text_is_not_passed_on_as_bytes(running: Running) -> None:
    """J-05 on the way back: half a surrogate pair of a provider's is no UTF-8 of ours, and no 500."""
    for text in ("\\ud800", "a\\udc00b", "\\ud800\\ud800"):
        for stream in (True, False):
            running.forget_trouble()
            said = (CHUNK if stream else WHOLE) % text
            running.provider.will(f"raw {json.dumps(said)}; end bare")
            answer = await say(running.address, post(document(messages=[{**SAID, "content": "hi"}], stream=stream)))
            assert answer.status in (200, 502)
            answer.body.decode()
            assert "\\ud800" not in answer.body.decode().lower().replace("\\ud800\\udc00", "")
    async with closed(running):
        pass
