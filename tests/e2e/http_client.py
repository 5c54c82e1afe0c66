"""A plain HTTP/1.1 client for tests, on h11: small, strict, and not our own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import h11
import trio


@attrs.define
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    whole: bool = False
    """The body ended as its framing says."""

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> Iterator[str]:
        """The data of each SSE event."""
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data:"):
                yield block.removeprefix("data:").strip()

    def text(self) -> str:
        """The content of a streamed chat completion."""
        out = []
        for data in self.events():
            if data == "[DONE]":
                continue
            out += [choice.get("delta", {}).get("content") or "" for choice in json.loads(data).get("choices", [])]
        return "".join(out)


async def fetch(
    stream: trio.abc.Stream,
    method: str,
    target: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """One request on a connection; waits for the whole answer, or for the cut."""
    connection = h11.Connection(h11.CLIENT)
    fields = {"host": "gateway.test", **({"content-length": str(len(body))} if body is not None else {}), **(headers or {})}
    await stream.send_all(connection.send(h11.Request(method=method, target=target, headers=list(fields.items()))) or b"")
    if body:
        await stream.send_all(connection.send(h11.Data(data=body)) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    reply = Reply(0, {})
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return reply
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(await stream.receive_some(65536))
            except trio.BrokenResourceError:
                return reply
        elif isinstance(event, h11.Response):
            reply.status = event.status_code
            reply.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            reply.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            reply.whole = True
            return reply
        elif isinstance(event, h11.ConnectionClosed):
            return reply


def chat_body(prompt: str, **changes: Any) -> bytes:
    return json.dumps({"model": "test-model", "messages": [{"role": "user", "content": prompt}], **changes}).encode()


async def chat(
    connection: trio.abc.Stream, prompt: str, *, key: str, headers: dict[str, str] | None = None, **changes: Any
) -> Reply:
    """One chat completion."""
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    return await fetch(connection, "POST", "/v1/chat/completions", headers=fields, body=chat_body(prompt, **changes))
