"""What clients ask for, in one vocabulary for all formats.

Rule 1: values are frozen; a hook returns a changed copy (`attrs.evolve`).
Rule 2: a field means the same in every dialect; what a dialect has beyond it travels in `extra`, untouched, and comes out
        again only in the same dialect.
Rule 3: None is "not said". It never stands for zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from clawproxy.values import value

if TYPE_CHECKING:
    from clawproxy.config import PriceConfig
    from clawproxy.events import Batch

Role = Literal["system", "developer", "user", "assistant", "tool"]
EMPTY: Mapping[str, Any] = MappingProxyType({})


@value
class TextPart:
    text: str
    extra: Mapping[str, Any] = EMPTY


@value
class ImagePart:
    """An image by `url` (never fetched by the gateway), or inline as base64 `data` with its `media_type`."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    detail: str | None = None
    extra: Mapping[str, Any] = EMPTY


@value
class AudioPart:
    data: str
    """base64"""
    format: str
    extra: Mapping[str, Any] = EMPTY


@value
class FilePart:
    """A document: inline base64 `data`, or a provider's `file_id`, or a `url`."""

    data: str | None = None
    file_id: str | None = None
    url: str | None = None
    filename: str | None = None
    media_type: str | None = None
    extra: Mapping[str, Any] = EMPTY


Part = TextPart | ImagePart | AudioPart | FilePart


@value
class ToolCall:
    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it; it need not be valid."""
    signature: str | None = None
    """What the provider wants back with this call, unread (Gemini's `thoughtSignature`)."""


@value
class Thinking:
    """A piece of a model's reasoning that its provider wants back unchanged in the next turn (Anthropic's thinking blocks,
    Responses' reasoning items). It means something to `dialect` alone: others leave it out."""

    text: str = ""
    signature: str | None = None
    data: str | None = None
    """Reasoning nobody but the provider can read (`redacted_thinking`, `encrypted_content`)."""
    id: str | None = None
    dialect: str = ""
    extra: Mapping[str, Any] = EMPTY


@value
class Message:
    role: Role
    content: str | tuple[Part, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    """Reasoning as plain text, where the format has it as no more than that."""
    extra: Mapping[str, Any] = EMPTY
    thinking: tuple[Thinking, ...] = ()
    """Before the content and the tool calls, in order."""
    is_error: bool | None = None
    """Of a tool's result: the tool failed."""
    pinned: bool = False
    """Its client wants it kept where a prompt does not fit. No provider is told."""

    def text(self) -> str:
        """All the text of this message, parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or () if isinstance(part, TextPart))


@value
class Tool:
    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON Schema"""
    strict: bool | None = None
    extra: Mapping[str, Any] = EMPTY


@value
class ToolChoice:
    mode: Literal["auto", "none", "required", "tool"]
    name: str | None = None


@value
class ResponseFormat:
    mode: Literal["text", "json_object", "json_schema"]
    schema: Mapping[str, Any] | None = None
    """The dialect-neutral part: `{"name", "schema", "strict", "description"}`."""


Operation = Literal["chat", "embeddings", "count_tokens"]


@value
class ChatRequest:
    """One prompt, whatever format it came in.

    What asks for something else than an answer takes the same way, so that no policy, budget or record is passed by:
    `embeddings` has a user message for each input and is answered with `Embedding` events; `count_tokens` is answered with a
    `UsageReport`.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    metadata: Mapping[str, Any] = EMPTY
    include_usage: bool = False
    """The client asked for usage figures at the end of its stream."""
    dialect: str = ""
    """The format it came in; `extra` is only meaningful to the same one."""
    extra: Mapping[str, Any] = EMPTY
    operation: Operation = "chat"
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning_budget: int | None = None
    """Tokens the model may think; 0: not at all. Beside or instead of `reasoning_effort`."""
    headers: tuple[tuple[str, str], ...] = ()
    """The client's headers that its dialect has checked, and sends on to a provider of the same (`anthropic-beta`)."""
    form: str = ""
    """How its dialect is to write the answer, where the client chose between forms (Gemini's `sse`, else an array). Nobody
    else's concern."""

    def texts(self) -> Iterator[str]:
        """Every text a model would read, message by message."""
        for message in self.messages:
            yield message.text()


@value
class Usage:
    """What was used, in tokens. `cached`, `cache_write` are part of `input`; `reasoning` is part of `output`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: Literal["measured", "estimated", "cache"] = "measured"
    """`cache`: what the answer took when a provider gave it; played again, it took nothing."""
    raw: Mapping[str, Any] = EMPTY
    """What the provider said, unclamped."""
    cache_write_1h_tokens: int | None = None
    """Part of `cache_write`: what is kept for an hour, which Anthropic bills apart."""
    cached_audio_tokens: int | None = None
    """Part of `cached` and of `audio_input`."""
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    service_tier: str | None = None
    """How the provider says it served the request: `flex`, `priority`."""

    @property
    def total_tokens(self) -> int | None:
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)


@value
class ClientCertificate:
    """A certificate that a client showed and that was verified, as far as it says who it is."""

    digest: str
    """SHA-256 of all of it, in lower-case hexadecimal."""
    identities: tuple[str, ...]
    """`sha256:HEX`, then for what it says `san:KIND:NAME` (`dns`, `uri`, `email`, `ip`) and `cn:NAME`."""
    expires: float
    """Unix time."""


@frozen(slots=True)
class Credentials:
    """What somebody showed at the door. `token` is theirs: it goes to `authenticate` and nowhere else."""

    token: str | None = field(repr=False)
    peer: str = ""
    """The address it came from."""
    surface: str = ""
    certificate: ClientCertificate | None = None

    @cached_property
    def digest(self) -> bytes:
        """What a verdict on it is known by; b"" where nothing was shown."""
        if self.token is None and self.certificate is None:
            return b""
        shown = "" if self.certificate is None else self.certificate.digest
        seen = f"{self.surface}\0{self.peer}\0{shown}\0{self.token or ''}"
        return blake2b(seen.encode("utf-8", "surrogateescape"), digest_size=32).digest()


@value
class Grant:
    """What one role allows. A request is allowed by one role as a whole, never by a part of one and a part of another."""

    role: str
    models: tuple[str, ...] = ()
    """Names or `prefix*`, as in all of these."""
    actions: tuple[str, ...] = ("*",)
    providers: tuple[str, ...] = ("*",)
    regions: tuple[str, ...] = ("*",)
    """Of routes; a route that states none is in none, and only `*` reaches it."""
    max_output: int | None = None
    """Tokens an answer may have; None: no limit."""
    make_keys: bool = False

    def covers(self, model: str, action: str | None = None) -> bool:
        return _fits(model, self.models) and (action is None or _fits(action, self.actions))

    def reaches(self, provider: str, region: str | None) -> bool:
        return _fits(provider, self.providers) and ("*" in self.regions or (region is not None and _fits(region, self.regions)))

    @property
    def is_everywhere(self) -> bool:
        return "*" in self.providers and "*" in self.regions


def _fits(word: str, patterns: tuple[str, ...]) -> bool:
    return "*" in patterns or any(
        pattern == word or (pattern.endswith("*") and word.startswith(pattern[:-1])) for pattern in patterns
    )


@value
class Principal:
    """Who is asking, once known."""

    key: str
    """The key's name: what budgets, logs and metrics call it."""
    user: str | None = None
    team: str | None = None
    app: str | None = None
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ("*",)
    """Names or `prefix*` patterns of the models it may use."""
    may_assert: bool = False
    """Whether the client's own `user` and `app` count."""
    expires: float | None = None
    """Unix time."""

    grants: tuple[Grant, ...] | None = None
    """What its roles allow; None where none are configured or it has none: then `models` alone counts. Set by the gateway."""
    maker: str | None = None
    """The key that made this one: its budgets hold for what it made, too."""

    def may_use(self, model: str, action: str | None = None) -> bool:
        """Whether it may use the model at all, or for this action."""
        if not _fits(model, self.models):
            return False
        return self.grants is None or any(grant.covers(model, action) for grant in self.grants)

    def may_reach(self, provider: str) -> bool:
        return self.grants is None or any(_fits(provider, grant.providers) for grant in self.grants)

    def granting(self, model: str, action: str) -> tuple[Grant, ...]:
        """The grants that a request comes under; where none names the model, a policy chose it, and all with the action count."""
        grants = [grant for grant in self.grants or () if _fits(action, grant.actions)]
        return tuple([grant for grant in grants if _fits(model, grant.models)] or grants)


@value
class Route:
    """One way to serve a request: a provider by name, and the model's name there."""

    provider: str
    model: str
    reason: str = ""
    """Why this one, in a word of a closed set, for the client and the log: `priority`, `cheapest`, `failover`."""
    strategy: str = "priority"
    context_tokens: int | None = None
    """The context window, where the operator stated it."""
    max_output_tokens: int | None = None
    recorded: Sequence[Batch] | None = None
    """A whole answer to play instead of asking anybody: nothing is sent, so nothing is billed. `provider` names where it is
    from; it need not be configured."""
    price: PriceConfig | None = None
    """What it costs, where the model's own price does not say."""
    credential: int = 0
    """Which of the provider's credentials, in the order they are configured."""
    after: float = 0.0
    """Seconds to wait before it is tried: a retry's backoff."""
    hedge_after: float | None = None
    """Where no content came within so many seconds of its being tried, the plan is asked for another to run beside it."""
    goes_on: bool = False
    """Where its answer is cut, the plan is asked for a route (reason `continue`) on which it goes on: so what the client heard is
    kept."""
    mark: int = 0
    """Set by a plan that means to know its attempt again; whoever changes a route keeps it."""
