"""The scripted provider: an LLM provider that does what it is told, and remembers what it saw.

    provider = ScriptedProvider()
    base_url = await nursery.start(provider.serve)
    provider.will_say("a", Pause(60), "b")
    ...
    await provider.log.wait_for(lambda log: log.counts["closed_by_peer"] == 1)

Which script answers a request, first that applies: the prompt's own (`script:`), the queue (`will`), the model's, the default.

Rule 1: one task per connection, and nothing in it may end the server.
Rule 2: it writes its own HTTP and its own events; nothing of the gateway's codec or client is used.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import trio

from clawproxy.scripted import faults as f
from clawproxy.scripted.anthropic import Anthropic
from clawproxy.scripted.checks import Step
from clawproxy.scripted.cohere import Cohere
from clawproxy.scripted.connection import Connection, PeerGone
from clawproxy.scripted.control import control
from clawproxy.scripted.cursor import ScriptError
from clawproxy.scripted.formats import Asked, BadRequest, Format
from clawproxy.scripted.gemini import Gemini
from clawproxy.scripted.log import ConnectionEntry, Entry, ProviderLog, State
from clawproxy.scripted.ollama import Ollama
from clawproxy.scripted.openai_chat import OpenAIChat
from clawproxy.scripted.openai_embeddings import OpenAIEmbeddings
from clawproxy.scripted.openai_responses import OpenAIResponses
from clawproxy.scripted.player import BrokenOff, Player
from clawproxy.scripted.promptcache import PromptCache
from clawproxy.scripted.reader import Malformed, Request
from clawproxy.scripted.responses_socket import SocketPlayer, asks_upgrade, converse
from clawproxy.scripted.script import Script, as_script, find_script, parse
from clawproxy.scripted.walk import plan
from clawproxy.secrets import Secret

DEFAULT_SCRIPT = "reply"
DEMO_SCRIPT = "pause 120ms; pace 25ms; reply"
FORMATS: Sequence[Format] = (
    OpenAIChat(),
    OpenAIEmbeddings(),
    OpenAIResponses(),
    Anthropic(),
    Gemini(),
    Cohere(),
    Ollama(),
)

_log = logging.getLogger("clawproxy.scripted")


class ScriptedProvider:
    """
    Args:
        script: what to answer where nothing else is said: a script, a step, or a script's text. Raises ScriptError.
        latency: seconds before each scripted answer.
        key: the credential to insist on (else 401), as a bearer token or in an `x-api-key`, `api-key` header; None: any.
        models: what `/v1/models` lists. Any model is answered.
        prompts: whether a prompt may bring its own script.
        cache: seconds for which the beginning of a prompt stays in its cache, by `model`; None: it has none.
        log: where to keep what was seen.
    """

    def __init__(
        self,
        script: Script | Step | str = DEFAULT_SCRIPT,
        *,
        latency: float = 0.0,
        key: Secret | None = None,
        models: Sequence[str] = ("scripted",),
        prompts: bool = True,
        log: ProviderLog | None = None,
        cache: float | None = None,
    ) -> None:
        self.default = as_script(script)
        self.latency = latency
        self.models = tuple(models)
        self.prompts = prompts
        self.cache = None if cache is None else PromptCache(cache)
        self.log = log or ProviderLog()
        self.queue: deque[Script] = deque()
        """Scripts for the next requests, one each."""
        self.by_model: dict[str, Script] = {}
        """A model's own default."""
        self.url = ""
        """`http://host:port` of the first listener, once it serves."""
        self.upgrade: Literal["accept", "hang", "cut"] | int = "accept"
        """What becomes of those who ask for a WebSocket; a number is the status that refuses them."""
        self.socket_answers: int | None = None
        """How many answers a WebSocket gives before it says that it is too old."""
        self.socket_coda = b""
        """Bytes that a WebSocket says after each answer, unasked."""
        self._initial = self.default
        self._key = key

    # --- telling it what to do ---

    def will(self, *scripts: Script | Step | str) -> None:
        """One script for each of the next requests; strings are scripts' texts. Raises ScriptError."""
        self.queue.extend([as_script(script) for script in scripts])

    def will_say(self, *parts: str | Step) -> None:
        """The next answer, from steps; bare strings are said: `will_say("a", Pause(60), "b")`."""
        self.queue.append(Script.of(*parts))

    def will_fail(self, status: int = 500, *, body: str | None = None, retry_after: str | None = None, times: int = 1) -> None:
        """The next `times` answers are this status."""
        self.queue.extend([Script.of(f.Status(status, body, retry_after=retry_after))] * times)

    def always(self, *parts: str | Step) -> None:
        """The default from now on, from steps; bare strings are said."""
        self.default = Script.of(*parts)

    def reset(self) -> None:
        """As new: no queue, the first default, an empty log (what is open stays)."""
        self.default = self._initial
        self.queue.clear()
        self.by_model.clear()
        if self.cache is not None:
            self.cache.clear()
        self.log.clear()

    # --- serving ---

    @property
    def base_url(self) -> str:
        """What a gateway's `base_url` is set to: `http://host:port/v1`."""
        return f"{self.url}/v1"

    async def serve(
        self, host: str = "127.0.0.1", port: int = 0, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and answer until cancelled; `task_status` starts with `base_url`. Raises OSError where it cannot listen."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        address = listeners[0].socket.getsockname()
        self.url = f"http://[{address[0]}]:{address[1]}" if ":" in address[0] else f"http://{address[0]}:{address[1]}"
        task_status.started(self.base_url)
        await trio.serve_listeners(self.handle, listeners)

    @classmethod
    @asynccontextmanager
    async def running(cls, script: Script | Step | str = DEFAULT_SCRIPT, **options: Any) -> AsyncIterator[ScriptedProvider]:
        """`async with ScriptedProvider.running("say hello") as provider:`, on a free port of 127.0.0.1."""
        provider = cls(script, **options)
        async with trio.open_nursery() as nursery:
            await nursery.start(provider.serve)
            yield provider
            nursery.cancel_scope.cancel()

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection, to its end. For `trio.serve_listeners`. Raises only Cancelled."""
        connection = Connection(stream.socket)
        row = self.log.opened(_peer(stream.socket))
        try:
            await self._requests(connection, row)
            connection.by_provider = True
        except PeerGone:
            pass
        except BrokenOff as end:
            connection.by_provider = True
            if end.reset:
                connection.reset()
        except trio.Cancelled:
            connection.by_provider = True
            raise
        except Exception:
            # A fault here is a bug of the provider's own: loud in the log, and the other connections go on.
            connection.by_provider = True
            _log.exception("the scripted provider failed on connection %d", row.serial)
        finally:
            connection.close()
            self.log.closed(row, "provider" if connection.by_provider else "peer")

    async def _requests(self, connection: Connection, row: ConnectionEntry) -> None:
        player: Player | None = None
        while player is None or player.keep_alive:
            request = await self._next(connection, player)
            if request is None:
                return
            if request.path.startswith("/_"):
                player = await control(self, connection, row, request)
            elif asks_upgrade(request):
                return await converse(self, connection, row, request)
            else:
                player = await self.exchange(connection, row, request)

    async def _next(self, connection: Connection, before: Player | None) -> Request | None:
        """The next request, or None where the connection is to be closed instead. Raises PeerGone."""
        if before is not None and before.at_reuse:
            await connection.wait_readable()
            connection.close_unread()
            return None
        try:
            if before is not None and before.idle is not None and not connection.reader.started:
                with trio.move_on_after(before.idle) as scope:
                    await connection.receive()
                if scope.cancelled_caught:
                    return None
            while (request := connection.reader.next()) is None:
                if connection.reader.expects_continue():
                    await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                await connection.receive()
        except Malformed as problem:
            self.log.malformed.append(str(problem))
            self.log.changed()
            body = FORMATS[0].error_body(problem.status, str(problem))
            head = f"HTTP/1.1 {problem.status} Malformed\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            await connection.send(head.encode() + body)
            return None
        return request

    def wants_key(self, request: Request) -> int | None:
        """401 where this upgrade has not the key, which is insisted on."""
        said = [value for name, value in request.headers if name.lower() == "authorization"]
        return 401 if self._key is not None and f"Bearer {self._key.reveal()}" not in said else None

    async def exchange(
        self, connection: Connection, row: ConnectionEntry, request: Request, *, over_socket: bool = False
    ) -> Player:
        """One request, from its bytes to the end of its answer. `over_socket`: it came as a message of the WebSocket mode."""
        key = None if self._key is None else self._key.reveal()
        entry = self.log.received(row, request.method, request.target, request.headers, request.body, key)
        entry.request_id = entry.header("x-request-id") or entry.header("x-client-request-id")
        state: State = "closed_by_provider"
        try:
            player = await self._answer(connection, request, entry, SocketPlayer if over_socket else Player)
            state = "finished"
        except PeerGone:
            state = "closed_by_peer"
            raise
        except BrokenOff:
            state = "cut_by_script"
            raise
        except Malformed as problem:
            self.log.malformed.append(str(problem))
            raise PeerGone from problem
        finally:
            self.log.over(entry, state)
        return player

    async def _answer(self, connection: Connection, request: Request, entry: Entry, make: type[Player]) -> Player:
        format_ = FORMATS[0]
        over_socket = make is SocketPlayer
        player = make(connection, format_, entry, keep_alive=request.keep_alive)
        try:
            found, lists = _route(attrs.evolve(request, method="POST") if over_socket else request)
            format_ = found
            player = make(connection, format_, entry, keep_alive=request.keep_alive)
            if entry.credential_ok is False:
                raise BadRequest(401, "Incorrect API key provided.", code="invalid_api_key")
            if lists:
                await player.answer(200, format_.models(self.models))
                return player
            asked = self._read(request, entry, format_)
            if over_socket:
                asked, entry.stream = attrs.evolve(asked, stream=True), True
            script = self._choose(asked)
        except BadRequest as refused:
            await player.answer(refused.status, format_.error_body(refused.status, refused.message, refused.param, refused.code))
            return player
        entry.script = str(script) if len(script.steps) <= 50 else f"{len(script.steps)} steps"
        if self.latency:
            await connection.wait(self.latency)
        await player.play(plan(script, asked, format_.encoder(asked, entry.serial)))
        return player

    def _read(self, request: Request, entry: Entry, format_: Format) -> Asked:
        try:
            entry.body = json.loads(request.body)
        except (ValueError, RecursionError):
            raise BadRequest(400, "We could not parse the JSON body of your request.") from None
        asked = format_.read(entry.body, request.target)
        entry.model, entry.stream = asked.model, asked.stream
        entry.request_id = entry.request_id or _body_request_id(entry.body)
        if self.cache is not None and not asked.counts:
            cached, words = self.cache.read(asked.model, entry.body, trio.current_time())
            # What a format counts is less than all the words there are: names and roles.
            asked = attrs.evolve(asked, cached=asked.words * cached // words if words else 0)
        return asked

    def _choose(self, asked: Asked) -> Script:
        if self.prompts and (text := find_script(asked.prompt)) is not None:
            try:
                return parse(text)
            except ScriptError as problem:
                raise BadRequest(400, f"The script in the prompt is wrong at {problem}", "messages", "bad_script") from None
        if self.queue:
            return self.queue.popleft()
        return self.by_model.get(asked.model, self.default)


def _route(request: Request) -> tuple[Format, bool]:
    """The format of a path, and whether it lists models. Raises BadRequest."""
    for format_ in FORMATS:
        lists = request.path in format_.lists
        if lists or request.path in format_.answers or (format_.pattern and format_.pattern.fullmatch(request.path)):
            if request.method != ("GET" if lists else "POST"):
                raise BadRequest(405, f"Not allowed to {request.method} here.")
            return format_, lists
    raise BadRequest(404, f"Unknown request URL: {request.method} {request.path}.")


def _body_request_id(body: Mapping[str, Any]) -> str | None:
    metadata = body.get("metadata")
    value = metadata.get("request_id") if isinstance(metadata, dict) else None
    return value if isinstance(value, str) else None


def _peer(sock: trio.socket.SocketType) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return ""  # gone already
    return f"{address[0]}:{address[1]}"


async def run_standalone(
    host: str = "127.0.0.1",
    port: int = 0,
    script: Script | Step | str = DEMO_SCRIPT,
    on_ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve until cancelled; `on_ready` gets the base URL once it listens. `options` as for `ScriptedProvider`."""
    provider = ScriptedProvider(script, **options)
    async with trio.open_nursery() as nursery:
        base_url: str = await nursery.start(provider.serve, host, port)
        if on_ready is not None:
            on_ready(base_url)
