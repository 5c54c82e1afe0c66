"""`clawproxy chat`: a conversation in a terminal, over the Claw WebSocket.

Rule 1: the answer goes to stdout as it comes, everything else to stderr: `clawproxy chat "..." > file` holds the answer alone.
Rule 2: Ctrl-C while an answer runs cancels it, provider and all; a second one, or one at the prompt, leaves.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from urllib.parse import urlsplit

import click
import trio
from attrs import define, field

from clawproxy.cli import say
from clawproxy.cli.common import printable
from clawproxy.cli.wsclient import Chat, Frame, Lost, connect
from clawproxy.secrets import Secret

DEFAULT_URL = "ws://127.0.0.1:8642/websocket"


@click.command("chat")
@click.argument("prompt", required=False)
@click.option("--url", default=DEFAULT_URL, show_default=True, envvar="CLAWPROXY_URL", help="ws:// or wss://")
@click.option(
    "--key", envvar="CLAWPROXY_KEY", help="The client key, which `ps` then shows; else $CLAWPROXY_KEY.", show_envvar=False
)
@click.option("--model", help="Which model; else the first the gateway lists.")
def command(prompt: str | None, url: str, key: str | None, model: str | None) -> None:
    """Talk to a gateway. With PROMPT, or text on stdin, one answer; else a conversation (/quit ends it)."""
    url = websocket_url(url)
    secret = Secret(key) if key else None
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise click.UsageError("There was nothing on stdin.")
    try:
        name = model or first_model(url, secret)
        code = trio.run(_run, url, secret, name, prompt)
    except BaseExceptionGroup as group:
        lost, rest = group.split(Lost)
        if lost is None or rest is not None:
            raise
        code = _say_lost(lost)
    except Lost as lost:
        code = _say_lost(lost)
    raise click.exceptions.Exit(code)


def _say_lost(lost: BaseException) -> int:
    while isinstance(lost, BaseExceptionGroup):
        lost = lost.exceptions[0]
    say(f"clawproxy: {printable(str(lost))}")
    return 1


def websocket_url(url: str) -> str:
    """The URL of the WebSocket, from it or from the gateway's own (`http://host:port`). Raises UsageError."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc or "@" in parts.netloc:
        raise click.UsageError(f"--url: write it like {DEFAULT_URL}")
    return f"{scheme}://{parts.netloc}{parts.path if parts.path not in ('', '/') else '/websocket'}"


def first_model(url: str, key: Secret | None) -> str:
    """The first model the gateway lists for this key. Raises Lost."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
    connection = make(parts.netloc, timeout=10)
    try:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key.reveal()}"} if key else {})
        answer = connection.getresponse()
        body = answer.read(1 << 20)
        if answer.status != 200:
            raise Lost(_message(body) or f"{url} answered with HTTP status {answer.status}")
        models = [entry["id"] for entry in json.loads(body)["data"]]
    except (OSError, http.client.HTTPException):
        raise Lost(f"nobody answers at {parts.netloc}; is the gateway running? (`clawproxy serve`)") from None
    except (ValueError, KeyError, TypeError):
        raise Lost(f"what answers at {parts.netloc} is no gateway") from None
    finally:
        connection.close()
    if not models:
        raise Lost("the gateway lists no models; name one with --model")
    return str(models[0])


def _message(body: bytes) -> str | None:
    try:
        return f"the gateway says: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return None


async def _run(url: str, key: Secret | None, model: str, prompt: str | None) -> int:
    async with connect(url, key) as chat, trio.open_nursery() as nursery:
        talk = Conversation(chat, model)
        nursery.start_soon(talk.watch_for_interrupts, nursery.cancel_scope)
        if prompt is not None:
            await talk.turn(prompt)
        else:
            say(f"{printable(model)} at {url}. Ctrl-C cancels an answer, /quit leaves.")
            await talk.loop()
        nursery.cancel_scope.cancel()
    return talk.code


@define
class Conversation:
    """What was said, and what is being said."""

    chat: Chat
    model: str
    messages: list[dict[str, str]] = field(factory=list)
    code: int = 0
    answering: bool = False
    interrupted: bool = False

    async def watch_for_interrupts(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                if not self.answering or self.interrupted:
                    self.code = 130
                    everything.cancel()
                    return
                self.interrupted = True
                await self.chat.cancel()

    async def loop(self) -> None:
        while True:
            line = await read_line("> ")
            if line is None or line.strip() in ("/quit", "/exit"):
                return
            if line.strip():
                await self.turn(line.rstrip("\n"))
                self.code = 0

    async def turn(self, prompt: str) -> None:
        """One question and its answer, printed as it comes."""
        self.messages.append({"role": "user", "content": prompt})
        self.answering, self.interrupted = True, False
        spoken: list[str] = []
        try:
            last = await self.chat.ask(self.model, self.messages, lambda frame: self._show(frame, spoken))
        finally:
            self.answering = False
        if spoken:
            write("\n")
        if last["type"] == "error":
            self.messages.pop()
            self.code = 1
            say(f"clawproxy: {printable(str(last.get('message', 'error')))} ({printable(str(last.get('error', '')))})")
            return
        if spoken:
            self.messages.append({"role": "assistant", "content": "".join(spoken)})
        else:  # cancelled before a word came: an empty answer would be refused by some providers
            self.messages.pop()
        if last.get("outcome") == "cancelled":
            self.code = 130
            say("cancelled")

    def _show(self, frame: Frame, spoken: list[str]) -> None:
        if frame["type"] == "llm_token" and isinstance(frame.get("content"), str):
            spoken.append(frame["content"])
            write(printable(frame["content"], lines=True))
        elif frame["type"] == "llm_notice":
            say(f"[{printable(str(frame.get('code')))}] {printable(str(frame.get('message')))}")


def write(text: str) -> None:
    """To stdout, at once. Raises BrokenPipeError."""
    sys.stdout.write(text)
    sys.stdout.flush()


async def read_line(prompt: str) -> str | None:
    """One line from the terminal; None at its end. Cancellable: no thread is left behind reading."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    data = b""
    while not data.endswith(b"\n"):
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        more = os.read(sys.stdin.fileno(), 65536)  # a terminal in its usual mode gives whole lines
        if not more:
            return data.decode("utf-8", "replace") if data else None
        data += more
    return data.decode("utf-8", "replace")
