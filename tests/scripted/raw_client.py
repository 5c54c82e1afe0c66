"""A raw client: the tests judge bytes, so nothing may stand between them and the socket."""

from __future__ import annotations

import json
from typing import Any

import h11
import trio
from attrs import frozen

from clawproxy.scripted import ScriptedProvider


@frozen
class Reply:
    """One answer as h11 understood it, and every byte of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of each `data:` event but the last marker."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def text(self) -> str:
        choices = [event["choices"][0]["delta"] for event in self.events if event.get("choices")]
        return "".join(delta.get("content") or "" for delta in choices)


def request_bytes(body: Any, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Client:
    """One connection to a provider."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(self, prompt: str = "hello there", *, stream: bool = True, headers: str = "", **more: Any) -> None:
        body = {"model": "test-model", "stream": stream, "messages": [{"role": "user", "content": prompt}], **more}
        await self.stream.send_all(request_bytes(body, headers=headers))

    async def read_all(self) -> bytes:
        """To the connection's end. Raises BrokenResourceError where it was reset."""
        data = b""
        while got := await self.stream.receive_some(65536):
            data += got
        return data

    async def read_until(self, marker: bytes) -> bytes:
        data = b""
        while marker not in data:
            got = await self.stream.receive_some(65536)
            assert got, f"the connection ended before {marker!r}: {data!r}"
            data += got
        return data

    async def reply(self) -> Reply:
        """One whole answer, by h11's judgement. Raises h11.RemoteProtocolError where it is cut short."""
        if self._h11.our_state is h11.IDLE:
            self._h11.send(h11.Request(method="POST", target="/", headers=[("host", "test")]))
            self._h11.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body, raw = b"", b""
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                data = await self.stream.receive_some(65536)
                raw += data
                self._h11.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        assert head is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return Reply(head.status_code, headers, body, raw)

    async def ask(self, prompt: str = "hello there", **more: Any) -> Reply:
        await self.send(prompt, **more)
        return await self.reply()

    def close(self) -> None:
        self.stream.socket.close()


class Clients:
    """Connections of one test, closed with it: `client = await connect(provider)`."""

    def __init__(self) -> None:
        self.opened: list[Client] = []

    async def __call__(self, provider: ScriptedProvider) -> Client:
        host, _, port = provider.url.removeprefix("http://").rpartition(":")
        client = Client(await trio.open_tcp_stream(host, int(port)))
        self.opened.append(client)
        return client
