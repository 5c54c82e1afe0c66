"""A test file for policies: requests, and what is to become of them.

    [[case]]
    name    = "interns get the small model"
    request = { key = "intern", model = "large", content = "Hello." }
    expect  = { model = "small", rules = ["interns"] }

Rule 1: a case goes through the router as a request does, from the policies to the order of routes; no provider is asked.
Rule 2: what `expect` does not name is not looked at; but a request that is refused has to be expected to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio
from attrs import field, frozen

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, Moment, Words, authorized
from clawproxy.config.checks_policies import NEEDS, SURFACES
from clawproxy.config.load import Loaded, Source, parse, read
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import lines
from clawproxy.config.policies import NONE
from clawproxy.config.structure import listed, make_converter, structure_section, suggest
from clawproxy.config.units import shown
from clawproxy.context import App, Exchange, new_id
from clawproxy.errors import KINDS, ClawError, ConfigError
from clawproxy.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    Principal,
    ResponseFormat,
    TextPart,
    Tool,
)
from clawproxy.stores.memory import MemoryStore

_MEDIA: Mapping[str, Part] = {"images": ImagePart(data=""), "audio": AudioPart("", "wav"), "files": FilePart(data="")}


@frozen
class Asked:
    """`request`: a key of the configuration brings its user, team, app, roles, tags and models where none are said."""

    model: str
    key: str = "test"
    user: str | None = None
    team: str | None = None
    app: str | None = None
    roles: Words | None = None
    tags: Words | None = None
    content: str = "Hello."
    repeat: int = field(default=1, validator=attrs.validators.in_(range(1, 1_000_001)))
    """How often the content stands there, for long prompts."""
    messages: int = field(default=1, validator=attrs.validators.in_(range(1, 10_001)))
    """How many; the content is in the last."""
    needs: Words = NONE
    metadata: Mapping[str, str] = field(factory=dict)
    surface: str = "openai_chat"
    operation: str = "chat"
    max_tokens: int | None = None
    at: Moment | None = None
    """When it comes; now, where it is not said."""


@frozen
class Expected:
    model: str | None = None
    """The model that answers, as the policies left its name."""
    route: str | None = None
    """`PROVIDER/MODEL` of the first attempt."""
    routes: Words | None = None
    """All that may be tried, in order."""
    refused: str | None = None
    """The policy that refuses it, or `*`."""
    error: str | None = None
    """Another error, by its slug: `model_not_found`."""
    cap: int | None = None
    """The most output tokens it then asks for."""
    rules: tuple[str, ...] | None = None
    """The policies that applied, in order; `[]`: none."""
    shadow: tuple[str, ...] | None = None
    """The shadows that would have."""


@frozen
class Case:
    request: Asked
    expect: Expected
    name: str = ""


@frozen
class Got:
    """What became of a case."""

    model: str
    routes: tuple[str, ...] = ()
    refused: str | None = None
    error: str | None = None
    cap: int | None = None
    rules: tuple[str, ...] = ()
    shadow: tuple[str, ...] = ()


@frozen
class Result:
    name: str
    problems: tuple[str, ...]
    """Sentences with file and line; none where it passed."""


def read_cases(path: Path) -> tuple[list[Case], Source]:
    """Raises ConfigError."""
    text = read(path)
    raw = parse(text, str(path))
    source = Source(str(path), lines(text))
    wrong: list[tuple[KeyPath, str]] = [((name,), "is not known here; write [[case]]") for name in raw if name != "case"]
    tables = raw.get("case", [])
    if not isinstance(tables, list) or not tables:
        wrong.append((("case",), "there is none; write [[case]] with a request and what to expect"))
        tables = []
    converter = make_converter(path.absolute().parent)
    cases = []
    for index, table in enumerate(tables):
        case, problems = structure_section(converter, Case, table, ("case", index))
        wrong += problems
        if case is not None:
            wrong += [(("case", index, *where), sentence) for where, sentence in _nonsense(case)]
            cases.append(case)
    if wrong:
        raise ConfigError(source.sentences(wrong))
    return cases, source


def _nonsense(case: Case) -> Iterator[tuple[KeyPath, str]]:
    for need in case.request.needs:
        if need not in NEEDS:
            yield ("request", "needs"), f'"{shown(need)}" is not known; {suggest(need, NEEDS)}'
    if case.request.operation not in ("chat", "embeddings", "count_tokens"):
        yield ("request", "operation"), f'"{shown(case.request.operation)}" is not known; write chat, embeddings or count_tokens'
    if case.request.surface not in SURFACES:
        yield ("request", "surface"), f'"{shown(case.request.surface)}" is not known; {suggest(case.request.surface, SURFACES)}'
    if case.expect == Expected():
        yield ("expect",), f"is empty; write any of {listed(attrs.fields_dict(Expected))}"
    if case.expect.error is not None and case.expect.error not in KINDS:
        yield ("expect", "error"), f'"{shown(case.expect.error)}" is no error; {suggest(case.expect.error, list(KINDS))}'


def run_cases(loaded: Loaded, cases: list[Case], source: Source) -> list[Result]:
    """Raises ConfigError."""
    import clawproxy_router

    if "router" not in loaded.settings:
        raise ConfigError(["pipeline.order: has no `router`, which evaluates policies; add it there"])
    app = App(loaded.config, MemoryStore(), "test", None)
    app.random.seed(0)
    state = clawproxy_router.configure(loaded.settings["router"], app)

    async def run() -> list[Got]:
        return [await _run(case.request, loaded.config, state) for case in cases]

    results = []
    for index, (case, got) in enumerate(zip(cases, trio.run(run), strict=True)):
        name = case.name or f"case {index + 1}"
        rows: list[tuple[KeyPath, str]] = [(("case", index, "expect", *where), say) for where, say in _compare(case.expect, got)]
        results.append(Result(name, tuple(source.sentences(rows))))
    return results


async def _run(asked: Asked, config: Config, state: Any) -> Got:
    import clawproxy_router

    exchange, request = _exchange(asked, config)
    refused = error = None
    routes: tuple[str, ...] = ()
    try:
        request = await clawproxy_router.prepare_request(exchange, request, state) or request
        plan = await clawproxy_router.choose_route(exchange, request, state)
        if plan is None:
            error = "model_not_found"
        else:
            routes = tuple(f"{route.provider}/{route.model}" for route in plan.candidates)
    except ClawError as raised:
        refused = raised.details.policy if raised.slug == "refused.plugin" else None
        error = None if refused is not None else raised.slug
    applied = [dict.fromkeys(hit.rule for hit in exchange.rules if hit.shadow is shadow) for shadow in (False, True)]
    return Got(request.model, routes, refused, error, request.max_tokens, *map(tuple, applied))


def _exchange(asked: Asked, config: Config) -> tuple[Exchange, ChatRequest]:
    key = config.keys.get(asked.key)
    own: dict[str, Any] = {}
    if key is not None:
        own = {name: getattr(key, name) for name in ("user", "team", "app", "roles", "tags", "models", "may_assert")}
    said = {name: getattr(asked, name) for name in ("user", "team", "app", "roles", "tags")}
    principal = Principal(asked.key, **(own | {name: value for name, value in said.items() if value is not None}))
    principal = authorized(principal, config.roles)
    parts = [_MEDIA[need] for need in asked.needs if need in _MEDIA]
    text = asked.content * asked.repeat
    last = Message("user", (TextPart(text), *parts) if parts else text)
    request = ChatRequest(
        asked.model,
        (*(Message("user", "") for _ in range(asked.messages - 1)), last),
        max_tokens=asked.max_tokens,
        tools=(Tool("tool"),) if "tools" in asked.needs else (),
        response_format=ResponseFormat("json_schema", {}) if "json_schema" in asked.needs else None,
        metadata=asked.metadata,
        dialect=asked.surface,
        operation=asked.operation,  # type: ignore[arg-type]  # it was looked at
    )
    exchange = Exchange(
        new_id(), asked.surface, principal, Deadlines(), requested_model=asked.model, user=principal.user, app=principal.app
    )
    if asked.at is not None:
        exchange.started_unix = asked.at
    return exchange, request


def _compare(expect: Expected, got: Got) -> Iterator[tuple[KeyPath, str]]:
    if expect.refused is None and got.refused is not None:
        yield (), f"it was refused by `{got.refused}`"
        return
    if expect.error is None and got.error is not None:
        yield (), f"it failed with `{got.error}`"
        return
    if expect.refused is not None and got.refused != expect.refused and not (expect.refused == "*" and got.refused):
        yield ("refused",), f'"{shown(expect.refused)}" was to refuse it; {_was(got)}'
    if expect.error is not None and got.error != expect.error:
        yield ("error",), f'"{shown(expect.error)}" was expected; {_was(got)}'
    first = got.routes[0] if got.routes else None
    pairs: list[tuple[str, Any, Any]] = [
        ("model", expect.model, got.model),
        ("route", expect.route, first),
        ("routes", expect.routes, got.routes),
        ("cap", expect.cap, got.cap),
        ("rules", expect.rules, got.rules),
        ("shadow", expect.shadow, got.shadow),
    ]
    for name, wanted, came in pairs:
        if wanted is not None and wanted != came:
            yield (name,), f"{_said(wanted)} was expected; it is {_said(came)}"


def _was(got: Got) -> str:
    if got.refused is not None:
        return f"`{got.refused}` did"
    return f"it failed with `{got.error}`" if got.error is not None else f"it goes to {got.routes[0] if got.routes else 'nobody'}"


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(shown(str(each)) for each in value)}]"
    return "none" if value is None else f"`{shown(str(value))}`"
