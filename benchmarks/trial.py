"""`python -m benchmarks.trial PORT UPSTREAM KEY`: the least a Trio gateway can be, to hold ours against.

It checks the key, decodes the body and encodes it anew, sets a deadline, keeps provider connections in a pool, and reads the
usage figures. It has no error handling worth the name, no policy, ledger, log or metrics, and notices no hang-up: it is the floor
that Trio, llhttp and msgspec set on this machine, so `ours : trial` is a figure that means the same on any machine.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import httptools
import msgspec
import trio
from msgspec import Struct

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Message(Struct):
    role: str
    content: str


class Request(Struct, omit_defaults=True):
    model: str
    messages: list[Message]
    stream: bool = False


class Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(Struct):
    usage: Usage | None = None


class Parsed:
    """What one HTTP message said; llhttp calls it back."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.key = b""
        self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.key = value

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.whole = True


class Trial:
    def __init__(self, upstream: int, key: str) -> None:
        self.upstream = upstream
        self.key = f"Bearer {key}".encode()
        self.idle: deque[trio.SocketStream] = deque()
        self.tokens = 0
        self.decode: Any = msgspec.json.Decoder(Request).decode
        self.chunk: Any = msgspec.json.Decoder(Chunk).decode

    async def serve(self, client: trio.SocketStream) -> None:
        async with client:
            while True:
                head = Parsed()
                parser = httptools.HttpRequestParser(head)
                while not head.whole:
                    data = await client.receive_some()
                    if not data:
                        return
                    parser.feed_data(data)
                if head.key != self.key:
                    await client.send_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
                    continue
                with trio.fail_after(600):
                    await self.answer(client, self.decode(b"".join(head.body)))

    async def answer(self, client: trio.SocketStream, request: Request) -> None:
        body = msgspec.json.encode(request)
        provider = self.idle.pop() if self.idle else await trio.open_tcp_stream("127.0.0.1", self.upstream)
        await provider.send_all(HEAD % len(body) + body)
        said = Parsed()
        parser = httptools.HttpResponseParser(said)
        begun = False
        while not said.whole:
            parser.feed_data(await provider.receive_some())
            data = b"".join(said.body)
            said.body.clear()
            if request.stream:
                for line in data.split(b"\n\n"):
                    if line.startswith(b"data: {"):
                        self.count(self.chunk(line[6:]))
                framed = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                if not begun:
                    begun = True
                    framed = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + framed
                await client.send_all(framed + b"0\r\n\r\n" if said.whole else framed)
            elif said.whole:
                self.count(self.chunk(data))
                await client.send_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
                )
        self.idle.append(provider)

    def count(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self.tokens += chunk.usage.prompt_tokens + chunk.usage.completion_tokens


async def main(port: int, upstream: int, key: str) -> None:
    trial = Trial(upstream, key)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await trio.serve_listeners(trial.serve, listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
