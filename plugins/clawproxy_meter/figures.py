"""A provider's figures: what an answer may come to, and what is believed. Pure functions; `clawproxy.counting` counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from clawproxy.counting import estimate as estimate
from clawproxy.counting import prompt_bound as prompt_bound
from clawproxy.counting import text_bytes as text_bytes
from clawproxy.events import Event
from clawproxy.messages import ChatRequest, Route, TextPart, Usage

CLAMP_FACTOR = 4
CLAMP_FLOOR = 16_384
"""A figure up to this is believed however short the prompt: templates, tool preambles and reasoning are not in it."""
MOST = 10**14
"""Beyond any figure a provider reports, durations in nanoseconds included."""
UNBOUNDED = 4_000_000
"""What is believed where the gateway can not know: media, tools of the provider, no stated maximum of the answer."""
ANSWERS = ("n", "generationConfig.candidateCount")
"""Of `extra`: how many answers are asked for."""


def output_bound(request: ChatRequest, route: Route) -> int | None:
    """At most how many tokens the answer can be; None where nobody said. Each of several answers to one prompt may be as long."""
    longest = request.max_tokens if request.max_tokens is not None else route.max_output_tokens
    return longest * answers(request) if longest and request.extra else longest


def answers(request: ChatRequest) -> int:
    """How many answers are asked for."""
    if not request.extra:
        return 1
    return max([1, *(said for name in ANSWERS if type(said := request.extra.get(name)) is int)])


@frozen(slots=True)
class Bounds:
    """The most that is believed of a provider's figures."""

    input: int
    output: int


def bounds(request: ChatRequest, route: Route, reserved_input: int, reserved_output: int | None) -> Bounds:
    open_ended = bool(request.tools or request.extra) or any(
        not isinstance(part, TextPart)
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content or ()
    )
    most_input = max(CLAMP_FACTOR * reserved_input, CLAMP_FLOOR, route.context_tokens or UNBOUNDED if open_ended else 0)
    most_output = UNBOUNDED if reserved_output is None else max(CLAMP_FACTOR * reserved_output, CLAMP_FLOOR)
    return Bounds(most_input, most_output)


def is_sane(usage: Usage) -> bool:
    """Whether its figures need no second look: counts, no part above its whole, all below every bound."""
    given, taken = usage.input_tokens, usage.output_tokens
    if type(given) is not int or type(taken) is not int or not (0 <= given <= CLAMP_FLOOR and 0 <= taken <= CLAMP_FLOOR):
        return False
    cached, written, thought = usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens
    long, heard, audio = usage.cache_write_1h_tokens, usage.cached_audio_tokens, usage.audio_input_tokens
    spoken, seen, drawn = usage.audio_output_tokens, usage.image_input_tokens, usage.image_output_tokens
    return (
        (cached is None or _is_less(cached, given))
        and (thought is None or _is_less(thought, taken))
        and (written is None or _is_part(written, given))
        and (long is None or _is_part(long, given))
        and (heard is None or _is_part(heard, given))
        and (audio is None or _is_part(audio, given))
        and (seen is None or _is_part(seen, given))
        and (spoken is None or _is_part(spoken, taken))
        and (drawn is None or _is_part(drawn, taken))
    )


def _is_part(value: object, whole: int) -> bool:
    return type(value) is int and 0 <= value <= whole


def _is_less(value: object, whole: int) -> bool:
    """A part that is all of its whole may have been held to it by a dialect: what was said is to be looked at."""
    return type(value) is int and (0 <= value < whole or value == whole == 0)


def strange(said: Mapping[str, Any]) -> bool:
    """Whether there is a figure that can not be among what a provider said: below zero, beyond any answer, or a part of a whole
    (`X_details` of `X`, where providers say it so) that is more than it. Dialects leave such figures out without a word."""
    for name, value in said.items():
        if isinstance(value, dict):
            whole = said.get(name.removesuffix("_details"))
            parts = [part for part in value.values() if type(part) is int]
            if any(map(_can_not_be, parts)) or (type(whole) is int and any(part > whole for part in parts)):
                return True
        elif _can_not_be(value):
            return True
    return False


def _can_not_be(value: object) -> bool:
    return type(value) is int and not 0 <= value <= MOST


def believed(usage: Usage, limits: Bounds) -> tuple[Usage, bool]:
    """The usage with every figure in its bounds, and whether any was not, when the provider said it.

    What is no count at all (negative, a float, a string) becomes None, "not said": it is estimated rather than free. Parts of a
    whole are at most the whole.
    """
    given = _count(usage.input_tokens, limits.input)
    taken = _count(usage.output_tokens, limits.output)
    most_in = limits.input if given is None else given
    most_out = limits.output if taken is None else taken
    sane = evolve(
        usage,
        input_tokens=given,
        output_tokens=taken,
        cached_tokens=_count(usage.cached_tokens, most_in),
        cache_write_tokens=_count(usage.cache_write_tokens, most_in),
        reasoning_tokens=_count(usage.reasoning_tokens, most_out),
        cache_write_1h_tokens=_count(usage.cache_write_1h_tokens, most_in),
        cached_audio_tokens=_count(usage.cached_audio_tokens, most_in),
        audio_input_tokens=_count(usage.audio_input_tokens, most_in),
        audio_output_tokens=_count(usage.audio_output_tokens, most_out),
        image_input_tokens=_count(usage.image_input_tokens, most_in),
        image_output_tokens=_count(usage.image_output_tokens, most_out),
    )
    return sane, sane != usage or strange(usage.raw)


def _count(value: object, most: int) -> int | None:
    if type(value) is not int or value < 0:  # the provider's word: it can be anything
        return None
    return min(value, most)


def other_bytes(event: Event) -> int:
    """Bytes of content of an event that is no text, as a meter counts them."""
    arguments = getattr(event, "arguments", None)
    if arguments is None:
        return 0
    return text_bytes(arguments) + text_bytes(getattr(event, "name", None) or "")


def summed(usages: list[Usage]) -> Usage | None:
    """Of several attempts; None of none. What nobody said is not known."""
    if len(usages) < 2:
        return usages[0] if usages else None
    return Usage(
        input_tokens=_add([usage.input_tokens for usage in usages]),
        output_tokens=_add([usage.output_tokens for usage in usages]),
        cached_tokens=_add([usage.cached_tokens for usage in usages]),
        cache_write_tokens=_add([usage.cache_write_tokens for usage in usages]),
        reasoning_tokens=_add([usage.reasoning_tokens for usage in usages]),
        source="measured" if all(usage.source == "measured" for usage in usages) else "estimated",
        raw=usages[-1].raw,
        cache_write_1h_tokens=_add([usage.cache_write_1h_tokens for usage in usages]),
        cached_audio_tokens=_add([usage.cached_audio_tokens for usage in usages]),
        audio_input_tokens=_add([usage.audio_input_tokens for usage in usages]),
        audio_output_tokens=_add([usage.audio_output_tokens for usage in usages]),
        image_input_tokens=_add([usage.image_input_tokens for usage in usages]),
        image_output_tokens=_add([usage.image_output_tokens for usage in usages]),
        service_tier=usages[0].service_tier if len({usage.service_tier for usage in usages}) == 1 else None,
    )


def _add(counts: list[int | None]) -> int | None:
    said = [count for count in counts if count is not None]
    return sum(said) if said else None
