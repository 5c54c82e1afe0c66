"""The control endpoints of a standalone provider: what it saw, and what it is to do next. None of it counts as provider traffic.

    GET  /_log      every request and connection kept, as JSON; `?after=SERIAL` leaves out the requests up to that one
    GET  /_stats    the counters
    POST /_script   text: the next answer's script; `?as=default`: the default; `?model=NAME`: that model's.
                    JSON (application/json): {"next": [script, ...], "default": script, "models": {name: script}}
    POST /_reset    as new

Rule: nothing changes unless the whole instruction is right.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from clawproxy.scripted.connection import Connection
from clawproxy.scripted.cursor import ScriptError
from clawproxy.scripted.log import ConnectionEntry, Entry
from clawproxy.scripted.openai_chat import OpenAIChat
from clawproxy.scripted.player import Player
from clawproxy.scripted.reader import Request
from clawproxy.scripted.script import parse

if TYPE_CHECKING:
    from clawproxy.scripted.server import ScriptedProvider


class _Wrong(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


async def control(provider: ScriptedProvider, connection: Connection, row: ConnectionEntry, request: Request) -> Player:
    """Answer one control request. Raises PeerGone."""
    provider.log.forget(row)
    status = 200
    try:
        answer = _do(provider, request)
    except _Wrong as problem:
        status, answer = problem.status, {"error": {"message": str(problem)}}
    entry = Entry(0, row.serial, time.time(), request.method, request.target, ())
    player = Player(connection, OpenAIChat(), entry, keep_alive=request.keep_alive)
    await player.answer(status, json.dumps(answer).encode())
    return player


def _do(provider: ScriptedProvider, request: Request) -> Any:
    query = parse_qs(request.target.partition("?")[2])
    what = (request.method, request.path)
    if what == ("GET", "/_stats"):
        return provider.log.stats()
    if what == ("GET", "/_log"):
        answer = provider.log.as_json()
        after = query.get("after", ["0"])[0]
        if not after.isdecimal():
            raise _Wrong(400, "`after` is a serial number")
        answer["requests"] = [entry for entry in answer["requests"] if entry["serial"] > int(after)]
        return answer
    if what == ("POST", "/_reset"):
        provider.reset()
        return provider.log.stats()
    if what == ("POST", "/_script"):
        content_type = next((value for name, value in request.headers if name.lower() == "content-type"), "")
        _instruct(provider, _instruction(request.body, content_type, query))
        return {"queued": len(provider.queue), "default": str(provider.default)}
    raise _Wrong(404, "There are GET /_log, GET /_stats, POST /_script and POST /_reset.")


def _instruction(body: bytes, content_type: str, query: dict[str, list[str]]) -> dict[str, Any]:
    try:
        if content_type.startswith("application/json"):
            told = json.loads(body)
        else:
            text = body.decode()
            if "model" in query:
                told = {"models": {query["model"][0]: text}}
            else:
                told = {"default": text} if query.get("as") == ["default"] else {"next": [text]}
    except (ValueError, RecursionError):
        raise _Wrong(400, "Send a script as UTF-8 text, or JSON as application/json.") from None
    if not isinstance(told, dict) or not told or told.keys() - {"next", "default", "models"}:
        raise _Wrong(400, 'Send {"next": [script, ...], "default": script, "models": {name: script}}, any of the three.')
    return told


def _instruct(provider: ScriptedProvider, told: dict[str, Any]) -> None:
    following, models = told.get("next", []), told.get("models", {})
    if not isinstance(following, list) or not isinstance(models, dict):
        raise _Wrong(400, "`next` is a list of scripts, `models` an object of scripts.")
    try:
        queued = [parse(_text(script)) for script in following]
        default = parse(_text(told["default"])) if "default" in told else None
        by_model = {str(name): parse(_text(script)) for name, script in models.items()}
    except ScriptError as problem:
        raise _Wrong(400, str(problem)) from None
    provider.queue.extend(queued)
    provider.default = default or provider.default
    provider.by_model.update(by_model)


def _text(script: Any) -> str:
    if not isinstance(script, str):
        raise _Wrong(400, "A script is a string.")
    return script
