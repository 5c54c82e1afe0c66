"""What happens to what one format can say and another can not.

Rule 1: within one dialect everything passes: `extra` goes out as it came in.
Rule 2: across dialects, what is in `extra` is either harmless to lose (the dialect lists it in `HARMLESS`: then the client is
        told, by a notice) or changes what it asked for: then the request is refused, and the parameter named.
Rule 3: nothing is guessed: a field nobody listed is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from clawproxy.errors import ClawError
from clawproxy.events import Notice
from clawproxy.messages import ChatRequest, Route

HARMLESS: dict[str, frozenset[str]] = {
    "claw": frozenset(),
    "openai_chat": frozenset(
        {
            "max_completion_tokens",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "stream_options",
            "prediction",
        }
    ),
}
"""By dialect: the names in a request's `extra` that change nothing an answer says."""
DONE_HERE: dict[str, frozenset[str]] = {"openai_chat": frozenset({"encoding_format"})}
"""By dialect: the names that its client side itself does what they ask for, so that no provider needs to know them."""
EVERYWHERE = frozenset({"cache_control"})
"""The same, wherever they stand: in a request, a message, a part or a tool."""


def refuse(param: str, words: str) -> NoReturn:
    """`words`: what can not be said and where, as in "has no counterpart in the Gemini format"."""
    raise ClawError("unsupported_parameter", f"`{param}` {words}.", param=param)


def refuse_operation(request: ChatRequest, route: Route, dialect: str) -> NoReturn:
    """What is asked is nothing this provider does; nothing is sent to it."""
    what = {"count_tokens": "way to count tokens"}.get(request.operation, request.operation)
    words = f"The provider `{route.provider}` ({dialect}) has no {what}; ask for a model of one that has."
    raise ClawError("unsupported_parameter", words, param="model")


def leftovers(request: ChatRequest, dialect: str, words: str) -> tuple[Notice, ...]:
    """What must be left out of `request` for a provider of `dialect`.

    Args:
        words: as for `refuse`.

    Raises:
        ClawError: unsupported_parameter, for what would change the answer.
    """
    if request.dialect == dialect:
        return ()
    if not _has_extra(request):
        return ()
    harmless = HARMLESS.get(request.dialect, frozenset()) | EVERYWHERE
    dropped: dict[str, None] = {}
    done_here = DONE_HERE.get(request.dialect, frozenset())
    _sort({name: value for name, value in request.extra.items() if name not in done_here}, "", harmless, words, dropped)
    for number, message in enumerate(request.messages):
        if message.extra:
            _sort(message.extra, f"messages[{number}].", harmless, words, dropped)
        if not isinstance(message.content, str):
            for place, part in enumerate(message.content or ()):
                if part.extra:
                    _sort(part.extra, f"messages[{number}].content[{place}].", harmless, words, dropped)
    for number, tool in enumerate(request.tools):
        if tool.extra:
            _sort(tool.extra, f"tools[{number}].", harmless, words, dropped)
    return tuple([dropped_notice(name) for name in dropped])


def _has_extra(request: ChatRequest) -> bool:
    """Nearly no request has any."""
    if request.extra:
        return True
    for message in request.messages:
        if message.extra or (type(message.content) is tuple and any(part.extra for part in message.content)):
            return True
    return any(tool.extra for tool in request.tools) if request.tools else False


def dropped_notice(name: str) -> Notice:
    return Notice("parameter_dropped", f"`{name}` was left out: this provider's format has no place for it.", {"param": name})


def _sort(extra: Mapping[str, Any], prefix: str, harmless: frozenset[str], words: str, dropped: dict[str, None]) -> None:
    for name, value in extra.items():
        if name in harmless:
            dropped[name] = None
        elif value is not None:
            refuse(prefix + name, words)
