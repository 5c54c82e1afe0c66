"""The cells of the matrix: what is asked in each scenario, and what has to be seen by the client and by the provider.

Rule: a scenario raises AssertionError with what was wrong, or returns its verdict: `yes`, or `400 PARAM` where the gateway
      refused by name what the provider's format can not say.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import frozen

from clawproxy.scripted.script import parse
from tests.e2e.harness import KEY, Running
from tests.e2e.http_client import Reply, fetch
from tests.e2e.websocket_client import Frames, masked, open_raw
from tests.matrix import asking, reading
from tests.matrix.asking import ABOUT, TOOL, Ask
from tests.matrix.reading import Seen

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LONG = 'Ünïcödé — 漢字かな 🙂 العربية עברית 👩‍👩‍👧 "quoted" \\back\\ <tag> & \t tab \n line ' * 300
LENGTH = {"anthropic": "max_tokens", "gemini": "MAX_TOKENS", "cohere": "MAX_TOKENS"}
"""A provider's own word for an answer that met its limit."""
PARIS, OSLO = {"city": "Paris"}, {"city": 'Ōslo "N"'}


class Refused(Exception):
    """A 4xx that names a parameter."""

    def __init__(self, param: str) -> None:
        super().__init__(param)
        self.param = param


@frozen
class Cell:
    """One client dialect before one provider dialect."""

    running: Running
    client: str
    provider: str

    def will(self, *scripts: str) -> None:
        self.running.provider.will(*[parse(script) for script in scripts])

    async def ask(self, ask: Ask) -> Seen:
        """Raises Refused; AssertionError for any other status than 200."""
        if self.client == "claw":
            frames = await self._frames(asking.claw(ask, f"via-{self.provider}"))
            seen = reading.claw(frames)
            if frames[-1]["type"] == "error" and frames[-1]["code"] == 400:
                raise Refused(frames[-1].get("param") or frames[-1]["message"])
            return seen
        reply = await self.reply(ask)
        if reply.status == 400:
            raise Refused(json.dumps(reply.json()))
        assert reply.status == 200, reply.body
        assert reply.whole
        return reading.HTTP[self.client](reply.body, ask.stream)

    async def reply(self, ask: Ask) -> Reply:
        question = asking.HTTP[self.client](ask, f"via-{self.provider}")
        async with await self.running.connect() as stream:
            headers = {"authorization": f"Bearer {KEY}", **question.headers}
            with trio.fail_after(10):
                return await fetch(stream, "POST", question.path, headers=headers, body=question.body)

    async def _frames(self, frame: dict[str, Any]) -> list[dict[str, Any]]:
        async with await self.running.connect() as stream:
            with trio.fail_after(10):
                frames = Frames(stream, await open_raw(stream, KEY))
                await stream.send_all(masked(json.dumps(frame).encode()))
                got: list[dict[str, Any]] = []
                while not got or got[-1]["type"] not in ("llm_response_end", "error"):
                    said = await frames.next()
                    if said["type"] != "auth_ok":
                        got.append(said)
                return got

    def sent(self) -> str:
        """The last body the provider got, as JSON text whose strings are readable."""
        return json.dumps(self.running.provider.log.last.body, ensure_ascii=False)


def same(left: object, right: object) -> None:
    assert left == right, f"{left!r:.300} is not {right!r:.300}"


async def text(cell: Cell) -> None:
    cell.will("say Hello from over there.; usage 11 7")
    seen = await cell.ask(Ask("Say hello."))
    same((seen.text, seen.finish, seen.ended), ("Hello from over there.", "stop", True))
    same((seen.input_tokens, seen.output_tokens), (11, 7))
    assert "Be brief." in cell.sent()
    assert "Say hello." in cell.sent()
    assert "1000" in cell.sent(), "the limit on output did not arrive"


async def stream(cell: Cell) -> None:
    cell.will("say Hello from over there.; usage 11 7")
    seen = await cell.ask(Ask("Say hello.", stream=True))
    same((seen.text, seen.finish, seen.ended, seen.error), ("Hello from over there.", "stop", True, None))
    same((seen.input_tokens, seen.output_tokens), (11, 7))


async def tool(cell: Cell) -> None:
    for streamed in (False, True):
        cell.will(f"tool {TOOL} {json.dumps(PARIS)}", "say It is sunny.")
        seen = await cell.ask(Ask("How is the weather?", tools=True, stream=streamed))
        ((ident, name, arguments),) = seen.called()
        same((name, arguments, seen.finish), (TOOL, PARIS, "tool_calls"))
        assert ABOUT in cell.sent()
        assert '"city"' in cell.sent()
        given = (ident, name, "sunny 21")
        then = Ask("How is it?", tools=True, stream=streamed, calls=((ident, name, arguments),), results=(given,))
        seen = await cell.ask(then)
        same((seen.text, seen.finish), ("It is sunny.", "stop"))
        assert "sunny 21" in cell.sent()
        assert TOOL in cell.sent()


async def parallel(cell: Cell) -> None:
    for streamed in (False, True):
        cell.will(f"tool {TOOL} {json.dumps(PARIS)}; tool {TOOL} {json.dumps(OSLO)}", "say Both are fine.")
        seen = await cell.ask(Ask("How is the weather?", tools=True, stream=streamed))
        called = seen.called()
        same([(name, arguments) for _, name, arguments in called], [(TOOL, PARIS), (TOOL, OSLO)])
        results = tuple([(ident, name, f"{arguments['city']}: fine") for ident, name, arguments in called])
        seen = await cell.ask(Ask("How is it?", tools=True, stream=streamed, calls=tuple(called), results=results))
        same(seen.text, "Both are fine.")
        body = cell.sent()
        assert body.index("Paris: fine") < body.rindex("Ōslo")


async def image(cell: Cell) -> None:
    cell.will("say I see it.")
    same((await cell.ask(Ask("What is this?", image=PNG))).text, "I see it.")
    assert PNG in cell.sent()


async def schema(cell: Cell) -> None:
    cell.will('say {"answer_in_full":42}')
    seen = await cell.ask(Ask("The answer?", schema=True))
    same(json.loads(seen.text), {"answer_in_full": 42})
    assert "answer_in_full" in cell.sent()


async def reasoning(cell: Cell) -> None:
    for streamed in (False, True):
        cell.will("reasoning Let me think.; say Done.")
        seen = await cell.ask(Ask("Think.", effort="high", stream=streamed))
        same((seen.text, seen.reasoning), ("Done.", "Let me think."))


async def unicode(cell: Cell) -> None:
    for streamed in (False, True):
        cell.will("echo")
        seen = await cell.ask(Ask(LONG.strip(), stream=streamed))
        same(seen.text, LONG.strip())


async def stop(cell: Cell) -> None:
    cell.will("say As far as")
    seen = await cell.ask(Ask("Count.", stop=("END OF IT",)))
    same((seen.text, seen.finish), ("As far as", "stop"))
    assert "END OF IT" in cell.sent()


async def limit(cell: Cell) -> None:
    for streamed in (False, True):
        cell.will(f"say As far as; finish {LENGTH.get(cell.provider, 'length')}")
        seen = await cell.ask(Ask("Count.", stream=streamed))
        same((seen.text, seen.finish), ("As far as", "length"))


async def error_before(cell: Cell) -> None:
    for streamed in (False, True):
        cell.running.forget_trouble()
        cell.will("status 429 retry-after 3")
        if cell.client == "claw":
            seen = await cell.ask(Ask("Fail.", stream=streamed))
            assert seen.error
            continue
        reply = await cell.reply(Ask("Fail.", stream=streamed))
        same((reply.status, reply.headers.get("retry-after")), (429, "3"))
        assert "limiting" in json.dumps(reply.json())


async def error_within(cell: Cell) -> None:
    cell.will("say Well,; error type server_error code boom It broke.")
    seen = await cell.ask(Ask("Fail.", stream=True))
    assert seen.text.startswith("Well"), seen
    assert seen.error, "it was not told of the error"
    assert not seen.ended
    assert "broke" not in seen.error  # a provider's words are not for clients


async def disconnect(cell: Cell) -> None:
    cell.will("say One; pause 1h; say two")
    before = cell.running.provider.log.counts["closed_by_peer"]
    async with await cell.running.connect() as stream:
        if cell.client == "claw":
            await open_raw(stream, KEY)
            await stream.send_all(masked(json.dumps(asking.claw(Ask("Go.", stream=True), f"via-{cell.provider}")).encode()))
        else:
            question = asking.HTTP[cell.client](Ask("Go.", stream=True), f"via-{cell.provider}")
            head = [f"POST {question.path} HTTP/1.1", "host: gateway.test", f"authorization: Bearer {KEY}"]
            head += [f"{name}: {value}" for name, value in question.headers.items()]
            await stream.send_all("\r\n".join([*head, f"content-length: {len(question.body)}", "", ""]).encode() + question.body)
        with trio.fail_after(5):
            await cell.running.provider.log.wait_for(lambda log: log.in_progress)
            assert await stream.receive_some(100)
    with trio.fail_after(5):
        await cell.running.provider.log.wait_for(lambda log: log.counts["closed_by_peer"] > before)


SCENARIOS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    "text": text,
    "stream": stream,
    "tool call and result": tool,
    "parallel tools": parallel,
    "image": image,
    "JSON schema": schema,
    "reasoning": reasoning,
    "long unicode": unicode,
    "stop": stop,
    "output limit": limit,
    "error before": error_before,
    "error mid-stream": error_within,
    "disconnect": disconnect,
}
