"""A connection whose head is known: every answer is the one that a fresh connection gets."""

from __future__ import annotations

import json

import pytest
import trio
from attrs import evolve

from clawproxy.config import Config, LimitsConfig, ServerConfig
from clawproxy.errors import ClawError
from clawproxy.transport.reader import RequestReader

from .support import BODY, PATH, Answer, Raw, get, opened, post


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request was: so that no test here passes by the long way unnoticed."""
    seen: list[bool] = []
    body = RequestReader.body

    async def noting(self: RequestReader, *args: object) -> bytes:
        seen.append(self.recognised)
        return await body(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(RequestReader, "body", noting)
    return seen


def plain(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """What must be equal: all but the request's own id and the time."""
    fields = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date", "server-timing")}
    return answer.status, fields, answer.body


async def asked(raw: Raw, data: bytes) -> tuple[int, dict[str, str], bytes]:
    await raw.send(data)
    return plain(await raw.answer())


REQUESTS = {
    "same": post(),
    "another length": post({"say": ["x" * 500]}),
    "streamed": post({"stream": True}),
    "fails": post({"fail": "overloaded"}),
    "not JSON": post(b"{" * 20),
    "other key": post(key="other"),
    "no length": post(b"").replace(b"Content-Length: ", b"X-Length: "),
    "length twice": post(BODY, "Content-Length: 3"),
    "length 0": post(b""),
    "leading zero": post().replace(b"Length: ", b"Length: 0"),
    "media type": post().replace(b"application/json", b"text/plain"),
    "origin": post(BODY, "Origin: https://evil.test"),
    "deadline": post(BODY, "x-claw-deadline-ms: x"),
    "another path": post().replace(PATH.encode(), b"/v1/nothing"),
    "close": post(BODY, "Connection: close"),
    "bare LF": post().replace(b"\r\nHost", b"\nHost"),
    "models": get(),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_answer_is_that_of_a_fresh_connection(name: str, recognised: list[bool]) -> None:
    data = REQUESTS[name]
    async with opened() as door:
        fresh = await asked(await door.connect(), data)
        raw = await door.connect()
        first = await asked(raw, post())
        assert await asked(raw, post()) == first
        assert recognised[-2:] == [False, True]
        assert await asked(raw, data) == fresh
        if "connection" not in fresh[1]:
            assert await asked(raw, post()) == first
        else:
            assert await raw.rest() == b""


async def test_only_whole_requests_are_recognised_and_any_cut_is_served(recognised: list[bool]) -> None:
    async with opened() as door:
        raw = await door.connect()
        first = await asked(raw, post())
        data = post()
        for at in (1, 30, data.index(b"\r\n\r\n") + 1, data.index(b"\r\n\r\n") + 4, len(data) - 1):
            await raw.send(data[:at])
            await trio.sleep(0.01)
            assert await asked(raw, data[at:]) == first
            assert recognised[-1] is False
        assert await asked(raw, data) == first
        assert recognised[-1] is True


async def test_pipelined_requests_are_answered_in_order(recognised: list[bool]) -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"say": ["0"]}))
        await raw.answer()
        await raw.send(b"".join(post({"say": [str(n) * n]}) for n in range(1, 40)) + get() + post({"say": ["last"]})[:-1])
        for n in range(1, 40):
            assert json.loads((await raw.answer()).body) == {"text": str(n) * n}
        assert recognised == [False] + [True] * 39
        assert (await raw.answer()).status == 200
        await raw.send(b"}")
        assert json.loads((await raw.answer()).body) == {"text": "last"}


async def test_every_request_is_authenticated_and_admitted_anew(recognised: list[bool]) -> None:
    async with opened() as door:
        raw = await door.connect()
        for _ in range(3):
            assert (await asked(raw, post()))[0] == 200
        assert door.service.authenticated == 3
        door.service.refuse = ClawError("overloaded")
        assert (await asked(raw, post()))[0] == ClawError("overloaded").status
        door.service.refuse = None
        assert (await asked(raw, post()))[0] == 200  # its body was taken out of the way
        assert recognised == [False, True, True, True]


async def test_a_new_configuration_asks_again(recognised: list[bool]) -> None:
    async with opened(Config(server=ServerConfig(origins=("https://app.test",), hosts=("gw.test",)))) as door:
        raw = await door.connect()
        data = post(BODY, "Origin: https://app.test")
        first = await asked(raw, data)
        assert first[1]["access-control-allow-origin"] == "https://app.test"
        assert await asked(raw, data) == first
        old = door.service.config
        door.service.config = Config(server=ServerConfig(hosts=("gw.test",)))
        assert (await asked(raw, data))[0] == 403
        door.service.config = evolve(old, limits=LimitsConfig(body=type(old.limits.body)(10)))
        await raw.send(post({"say": ["x"]}, "Origin: https://app.test"))
        assert (await raw.answer()).status in (200, 413)  # the reader may have begun under the old limits
        door.service.config = old
    async with opened(Config(limits=LimitsConfig(body=type(old.limits.body)(100)))) as door:
        raw = await door.connect()
        assert (await asked(raw, post({"say": ["x"]})))[0] == 200
        assert (await asked(raw, post({"say": ["x"]})))[0] == 200
        assert recognised[-1] is True
        answer = await asked(raw, post({"say": ["x" * 100]}))
        assert (answer[0], answer[1]["connection"]) == (413, "close")
        assert recognised[-1] is True


async def test_the_head_limit_counts_the_digits_too(recognised: list[bool]) -> None:
    small, large = post({"say": ["x"]}), post({"say": ["x" * 100]})
    limit = small.index(b"\r\n\r\n") + 4
    assert large.index(b"\r\n\r\n") + 4 == limit + 1
    async with opened(Config(limits=LimitsConfig(head=type(Config().limits.head)(limit)))) as door:
        raw = await door.connect()
        assert [(await asked(raw, small))[0] for _ in range(2)] == [200, 200]
        assert recognised == [False, True]
        assert (await asked(raw, large))[0] == 431


async def test_the_request_count_and_the_error_count_go_on(recognised: list[bool]) -> None:
    async with opened(Config(limits=LimitsConfig(requests_per_connection=3))) as door:
        raw = await door.connect()
        answers = [await asked(raw, post()) for _ in range(3)]
        assert ["connection" in fields for _, fields, _ in answers] == [False, False, True]
        assert await raw.rest() == b""
    async with opened(Config(limits=LimitsConfig(errors_per_connection=3))) as door:
        raw = await door.connect()
        answers = [await asked(raw, post({"fail": "invalid_request"})) for _ in range(3)]
        assert ["connection" in fields for _, fields, _ in answers] == [False, False, True]
        assert await raw.rest() == b""


async def test_a_request_with_an_id_of_its_own_is_recognised_and_known_by_it(recognised: list[bool]) -> None:
    async with opened() as door:
        raw = await door.connect()
        for number in (1, 2, 2, 3):
            assert (await asked(raw, post(BODY, f"X-Request-ID: run:{number}", "traceparent: 00-1-2-01")))[0] == 200
        assert (await asked(raw, post(BODY, "X-Request-ID: two words", "traceparent: 00-1-2-01")))[0] == 200
        assert [call.client_request_id for call in door.service.calls] == ["run:1", "run:2", "run:2", "run:3", None]
        assert recognised == [False, True, True, True, False]
