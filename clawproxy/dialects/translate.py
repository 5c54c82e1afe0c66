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
    "cohere": frozenset({"citation_options", "citations", "document", "input_type", "priority"}),
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
    "openai_responses": frozenset(  # what Codex and the SDK send as a matter of course, and hints
        {
            "access_programs",
            "client_metadata",
            "format",
            "include",
            "max_tool_calls",
            "prompt_cache_breakpoint",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning.generate_summary",
            "reasoning.summary",
            "safety_identifier",
            "service_tier",
            "store",
            "stream_options",
            "text.verbosity",
            "truncation",
            "web_search",
            "defer_loading",
            "detail",
            "output_schema",
        }
    ),
    "anthropic": frozenset(  # what Claude Code sends as a matter of course, and hints
        {
            "context_management",
            "defer_loading",
            "diagnostics",
            "eager_input_streaming",
            "service_tier",
            "speed",
            "thinking",
        }
    ),
    "gemini": frozenset(
        {
            "generationConfig.enableEnhancedCivicAnswers",
            "generationConfig.mediaResolution",
            "labels",
            "mediaResolution",
            "partMetadata",
            "response",  # of a tool: what it will answer
            "responseJsonSchema",
            "safetySettings",
            "serviceTier",
            "store",
            "toolConfig.functionCallingConfig.mode",
        }
    ),
    "ollama": frozenset(
        {
            "keep_alive",
            # how a model is loaded
            "options.f16_kv",
            "options.low_vram",
            "options.main_gpu",
            "options.num_batch",
            "options.num_ctx",
            "options.num_gpu",
            "options.num_keep",
            "options.num_thread",
            "options.numa",
            "options.use_mlock",
            "options.use_mmap",
            "options.vocab_only",
            # there only where it sets no limit
            "options.num_predict",
        }
    ),
}
"""By dialect: the names in a request's `extra` that change nothing an answer says."""
SILENT: dict[str, frozenset[str]] = {
    "openai_chat": frozenset({"encoding_format"}),  # its client side does it itself
    "openai_responses": frozenset(
        {"annotations", "id", "instructions", "logprobs", "namespace", "phase", "status", "tool_calls", "type"}
    ),
    "gemini": frozenset(
        {
            "generationConfig.responseSchema",
            "generationConfig.thinkingConfig.includeThoughts",
            "generationConfig.thinkingConfig.thinkingBudget",
            "parameters",
            "partsOrder",
            "thoughtSignature",
        }
    ),
}
"""By dialect: names in `extra` that are its own bookkeeping. Left out without a word: the vocabulary says all that they mean."""
EVERYWHERE = frozenset({"cache_control"})
"""The same, wherever they stand: in a request, a message, a part or a tool."""


ORDER = "\0order"
"""In a message's `extra`: how what the vocabulary holds of it stood in its own format. Nothing is lost with it.
No client can send a key of this name (`jsonio`)."""
NEUTRAL: dict[str, Any] = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "top_logprobs": 0}
"""Values that ask for what every format does by itself."""


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
    dropped: dict[str, None] = dict.fromkeys(SILENT.get(request.dialect, ()))
    harmless |= dropped.keys()
    _sort(request.extra, "", harmless, words, dropped)
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
    return tuple([dropped_notice(name) for name in dropped if name not in SILENT.get(request.dialect, ())])


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
        elif value is not None and name != ORDER and not (name in NEUTRAL and value == NEUTRAL[name]):
            refuse(prefix + name, words)
