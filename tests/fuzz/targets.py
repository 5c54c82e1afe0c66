"""What is fuzzed: bytes in, and nothing out but an answer or a refusal of ours. Each target is one function of bytes.

Rule 1: a target lets only defects through. A refusal (ClawError below 500, ConfigError, a parser's own error) is a good end.
Rule 2: nothing is connected to, nothing is left behind; no input takes a second.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, cast

import trio
from joserfc import jwk, jws

import clawproxy_auth
from clawproxy.config import Config
from clawproxy.config.load import load
from clawproxy.context import App
from clawproxy.dialects import CLIENT, PATHS, PROVIDER, claw, claw_plain, jsonio
from clawproxy.errors import ClawError, ConfigError
from clawproxy.events import Outcome
from clawproxy.http1.body import BodyReader
from clawproxy.http1.engine import EngineFactory, select
from clawproxy.http1.headcheck import HeadCollector, parse_head
from clawproxy.pipeline import Plugins
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_credentials, make_exchange, make_head, make_request, make_route
from clawproxy.transport.websocket.frames import Broken, Reader
from clawproxy_auth.issuers import IssuerSettings
from clawproxy_auth.keyring import AuthSettings

ENGINES = tuple(select(name) for name in ("httptools", "h11"))
SLOWEST = 1.0
"""Seconds any input may take."""


def head(data: bytes) -> None:
    """Both engines, whole and cut in two: one verdict."""
    verdicts = set()
    for make in ENGINES:
        for at in (0, len(data) // 2):
            verdicts.add(_read([data[:at], data[at:]], make))
    assert len(verdicts - {("more", b"")}) <= 1, verdicts  # h11 waits for the end of a line that is wrong already


def _read(pieces: list[bytes], make: EngineFactory) -> tuple[str, bytes]:
    collector, engine = HeadCollector(16384), make()
    reader: BodyReader | None = None
    try:
        for piece in pieces:
            if reader is None:
                raw = collector.feed(piece)
                if raw is None:
                    continue
                reader = BodyReader(parse_head(raw, engine), engine, 1 << 20)
                piece = collector.rest
            if piece:
                reader.feed(piece)
    except ClawError as error:
        assert error.status < 500 or error.status in (501, 505), error.slug
        return error.slug, b""
    return ("ok", reader.content()) if reader is not None and reader.done else ("more", b"")


def body(data: bytes) -> None:
    """Every client's format, and on from it into every provider's."""
    if not data:
        return
    names = sorted({*CLIENT})
    name = names[data[0] % len(names)]
    path = next((path for path, dialect in PATHS.items() if dialect == name), "/v1beta/models/m:generateContent")
    try:
        request = CLIENT[name].decode_request(data[1:], {}, make_head(target=path))
        for provider in PROVIDER.values():
            with suppress(ClawError):
                provider.encode_request(request, make_route())
    except ClawError as error:
        assert error.status < 500, error.slug


def jsons(data: bytes) -> None:
    try:
        value = jsonio.decode(data)
    except ClawError as error:
        assert error.status in (400, 413)
        return
    assert jsonio.decode(jsonio.encode(value)) == value


def sse(data: bytes) -> None:
    """A provider's stream in every format, in two pieces, written for two clients' formats."""
    if not data:
        return
    names = sorted(PROVIDER)
    name, stream = names[data[0] % len(names)], bool(data[0] & 128)
    request = make_request(stream=stream)
    decoder = PROVIDER[name].decoder(request)
    answers = [CLIENT[client].answer(make_exchange(), request) for client in ("openai_chat", "anthropic")]
    at = len(data) // 2
    for batch in (decoder.feed(data[1:at]), decoder.feed(data[max(1, at) :]), decoder.close()):
        if batch is not None:
            for answer in answers:
                answer.encode(batch.replaced(batch.events))
    for answer in answers:
        answer.finish(Outcome("complete"), None)


def frames(data: bytes) -> None:
    """A client's WebSocket frames, in two pieces, and whole messages read as the Claw protocol and as a request."""
    reader = Reader(1 << 16)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        reader.feed(piece)
        while (got := reader.next()) is not None:
            if isinstance(got, Broken):
                assert got.code in (1002, 1003, 1007, 1008, 1009, 4400), got
                return
            if isinstance(got, bytes):
                _message(got)


def _message(data: bytes) -> None:
    """One message of the Claw protocol; what the short way takes, the careful way takes too."""
    plain = claw_plain.plain(data)
    said = None
    with suppress(ClawError):
        said = jsonio.decode(data)
    if isinstance(said, dict):
        with suppress(ClawError):
            claw.decode_append(said)
        try:
            claw.decode_request(said)
        except ClawError as error:
            assert error.status < 500, error.slug
            assert plain is None, error.message
    else:
        assert plain is None


KEY = jwk.ECKey.generate_key("P-256", {"kid": "a"})
ISSUER = "https://login.test"


class _NoStore:
    async def find_key(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()


@cache
def _ring() -> tuple[App, Any, TemporaryDirectory[str]]:
    folder = TemporaryDirectory()
    (Path(folder.name) / "keys.json").write_text(json.dumps({"keys": [KEY.as_dict(private=False)]}))
    app = App(Config(), cast(Store, _NoStore()), "fuzz", None, pepper=b"p" * 32)
    issuers = {
        "corp": IssuerSettings(
            issuer=ISSUER, audiences=("gateway",), jwks=f"file:{folder.name}/keys.json", team="team", roles="roles"
        )
    }
    return app, clawproxy_auth.configure(AuthSettings(failures=1 << 30, issuers=issuers), app), folder


def token(data: bytes) -> None:
    """A token as it comes; a header and claims with a bad signature; claims with a good one."""
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    if kind == 0:
        text = rest.decode("latin-1")
    elif kind == 1:
        header, _, claims = rest.partition(b"\0")
        text = f"{_part(header)}.{_part(claims)}.{_part(b'signature')}"
    else:
        text = jws.serialize_compact({"alg": "ES256", "kid": "a"}, rest, KEY, ["ES256"])
    app, ring, _ = _ring()
    try:
        principal = trio.run(clawproxy_auth.authenticate, make_credentials(text), ring, app)
    except ClawError as error:
        assert error.slug.startswith("auth."), error.slug
        return
    assert principal is None or (kind == 2 and principal.key == "corp" and principal.user)


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


BASE = b"""[providers.p]
base_url = "http://127.0.0.1:1/v1"
[models.m]
routes = [{ provider = "p", model = "x" }]
[keys.k]
secret = "env:A"
"""
PLUGINS = Plugins(["audit", "auth", "sanitize", "truncate", "router", "meter", "cache"])


def configuration(data: bytes) -> None:
    """A file as it is, or as more sections of a good one: it is read, or every problem has one printable line."""
    if not data:
        return
    with NamedTemporaryFile(suffix=".toml", dir=_ring()[2].name) as file:
        file.write(data[1:] if data[0] % 2 else BASE + data[1:])
        file.flush()
        try:
            load(Path(file.name), settings=PLUGINS.registry.settings, known_plugins=PLUGINS.names, environ={"A": "b" * 20})
        except ConfigError as error:
            assert error.problems
            for problem in error.problems:
                assert problem.isprintable(), problem
                assert len(problem) < 2000, problem


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "head": head,
    "frames": frames,
    "body": body,
    "json": jsons,
    "sse": sse,
    "token": token,
    "configuration": configuration,
}


def timed(name: str, data: bytes) -> None:
    """One input of one target; one that takes over a second of this process's time is a defect as well."""
    began = time.process_time()
    TARGETS[name](data)
    took = time.process_time() - began
    assert took < SLOWEST, f"{name} took {took:.1f} s"
