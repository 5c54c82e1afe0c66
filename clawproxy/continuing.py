"""An answer that was cut goes on: another attempt is asked for the rest, and the client gets one answer with a seam.

    Hearing       keeps the text the client was sent, and joins what a later attempt says to it
    go_on         the prompt, what was said, and (where the provider's model does not take that as a beginning) a sentence that
                  asks for the rest

Rule 1: only text goes on. After a call of a tool, a refusal, an embedding, content without a word for it, or the provider's own
        finish, nothing does: half a call is no call, and an answer that is over has no rest. Nor where the client asked for
        several answers, for JSON or for logprobs.
Rule 2: what was said is what the client was sent, no more (as in `steering`); text that a transform held is asked for again.
Rule 3: the client sees one answer: it begins once, its provider's bytes are not passed on behind the seam (they would begin it
        again), reasoning behind the seam stays out, and usage is the sum, which the exchange knows at the end.
Rule 4: the seam is never silent: a notice `continued` goes before the first content behind it; on SSE, where none can, a
        comment does.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from attrs import evolve

from clawproxy.config import ProviderConfig
from clawproxy.context import Attempt, Exchange
from clawproxy.events import CONTENT, Batch, Begin, Finish, Reasoning, Text, UsageReport
from clawproxy.messages import ChatRequest, Message, Route

if TYPE_CHECKING:
    from clawproxy.service import Client

MOST_KEPT: Final = 1 << 20
"""Characters of an answer that are kept; a longer one does not go on."""
BYTES_PER_TOKEN: Final = 4
GO_ON: Final = (
    "Your answer was cut off by a lost connection. Continue it from the exact character at which it stopped: repeat nothing, "
    "add no introduction, apology or remark about the interruption."
)
"""The last message of a prompt for the rest, in a user's role, where the model does not take a beginning."""
PREFILLED: Final = ("claude-3-*", "claude-*-4-0", "claude-*-4-2025*", "claude-*-4-1*", "claude-*-4-5*")
"""Models of the `anthropic` dialect that go on with an assistant message that comes last; since 4.6 they refuse one."""
_SEVERAL: Final = ("n", "generationConfig.candidateCount")
_SCORED: Final = ("logprobs", "top_logprobs", "generationConfig.responseLogprobs")
_BEHIND = frozenset({Begin, UsageReport, Reasoning})
"""What stays out behind a seam."""
_SILENT = frozenset({Text, Reasoning})


def is_one_text(request: ChatRequest) -> bool:
    """Whether an answer to it is one text, as far as the request tells."""
    wanted, extra = request.response_format, request.extra
    if request.operation != "chat" or (wanted is not None and wanted.mode != "text"):
        return False
    return not any(extra.get(name) for name in _SCORED) and all(extra.get(name) in (None, 1) for name in _SEVERAL)


class Hearing:
    """What a request's client has heard. Stands before its `Client` where the answer may go on.

    Attributes:
        possible: whether what was heard is only text.
    """

    __slots__ = ("_client", "_exchange", "_joined", "_providers", "_said", "_size", "_waiting", "possible")

    def __init__(self, client: Client, exchange: Exchange, providers: Mapping[str, ProviderConfig]) -> None:
        self._client = client
        self._providers = providers
        self._exchange = exchange
        self._said: list[str] = []
        self._size = 0
        self._joined = False
        """What comes now stands behind a seam."""
        self._waiting: Attempt | None = None
        """The attempt that goes on, until it says something."""
        self.possible = True

    def can_go_on(self, request: ChatRequest) -> bool:
        """Whether there is something to go on from, and room left for more of it."""
        return self.possible and self._text().strip() != "" and _left(request, self._text()) != 0

    def begin(self, attempt: Attempt, request: ChatRequest) -> ChatRequest:
        """`attempt` goes on from here: what is to be asked, where `request` was."""
        self._joined = True
        self._waiting = attempt
        route = attempt.route
        return go_on(request, self._text(), route, self._providers.get(route.provider))

    def _text(self) -> str:
        self._said = ["".join(self._said)]
        return self._said[0]

    async def send(self, batch: Batch) -> None:
        """Raises what `Client.send` raises."""
        if self._joined:
            batch = batch.replaced([event for event in batch.events if type(event) not in _BEHIND])
            if not batch.events:
                return
            if self._waiting is not None and batch.has_content():
                self._mark(self._waiting)
                self._waiting = None
        if self.possible:
            self._note(batch)
        await self._client.send(batch)

    def _note(self, batch: Batch) -> None:
        for event in batch.events:
            kind = type(event)
            if kind is Text:
                text: str = event.text  # type: ignore[union-attr]  # by its kind
                self._said.append(text)
                self._size += len(text)
                if self._size > MOST_KEPT:
                    self.possible = False
            elif kind is Finish or (kind in CONTENT and kind not in _SILENT):
                self.possible = False
        if not self.possible:
            self._said.clear()

    def _mark(self, attempt: Attempt) -> None:
        """The seam. The clients' transport may have a way of its own to show it."""
        where = {"attempt": attempt.number, "provider": attempt.route.provider, "at": self._size}
        self._exchange.notice("continued", "The answer was cut off; another attempt goes on with it.", **where)
        show = getattr(self._client, "seam", None)
        if show is not None:
            show(self._exchange.notices[-1])


def go_on(request: ChatRequest, said: str, route: Route, provider: ProviderConfig | None) -> ChatRequest:
    """The prompt for the rest of an answer of which `said` was heard."""
    turns = [Message("assistant", said)]
    if not takes_a_beginning(request, said, route, provider):
        turns.append(Message("user", GO_ON))
    return evolve(request, messages=(*request.messages, *turns), max_tokens=_left(request, said))


def _left(request: ChatRequest, said: str) -> int | None:
    """Of the tokens that the answer may have, about."""
    limit = request.max_tokens
    if limit is None:
        return None
    return max(0, limit - len(said.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def takes_a_beginning(request: ChatRequest, said: str, route: Route, provider: ProviderConfig | None) -> bool:
    """Whether the model goes on with an assistant message that comes last. One that thinks first does not, nor is one that ends
    in space accepted."""
    if provider is None or said != said.rstrip() or request.messages[-1].role == "assistant":
        return False
    if provider.prefill is not None:
        return provider.prefill
    if provider.dialect != "anthropic" or request.reasoning_effort or request.reasoning_budget or "thinking" in request.extra:
        return False
    return any(fnmatchcase(route.model, pattern) for pattern in PREFILLED)
