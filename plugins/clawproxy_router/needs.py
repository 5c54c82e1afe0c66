"""What a request needs of a route: read off the request, never guessed from its words.

Rule 1: what stands in a request is needed: tools, images, audio, files, a JSON schema, the room its prompt takes.
Rule 2: a client may say more: `capabilities`, `quality`, `region`, in headers (`x-claw-region`), or in the metadata of the Claw
        WebSocket. On other surfaces metadata is the client's own and means nothing here.
Rule 3: the operator's word binds: a principal's tag `region:NAME` leaves no other region. The client's `region` only comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from clawproxy.counting import BYTES_PER_TOKEN, text_bytes
from clawproxy.errors import ClawError
from clawproxy.messages import EMPTY, AudioPart, ChatRequest, FilePart, ImagePart, Message, Principal

INFERRED: Final = frozenset({"tools", "images", "audio", "files", "json_schema"})
"""What is read off a request, and what a route that states nothing is taken to be able to do."""
MESSAGE_TOKENS: Final = 4
MEDIA_TOKENS: Final = 1024
REGION_TAG: Final = "region:"
MOST_ASKED: Final = 32

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PARTS: Mapping[type[Any], str] = {ImagePart: "images", AudioPart: "audio", FilePart: "files"}


@frozen(slots=True)
class Needs:
    capabilities: frozenset[str]
    input_tokens: int
    """About how many: the prompt's bytes through four."""
    max_tokens: int | None
    """The most the answer may have, where the client said."""
    quality: int
    region: str | None = None
    bound: bool = False
    """Whether another region may not be taken."""


def needs_of(request: ChatRequest, principal: Principal, headers: Mapping[str, str] = EMPTY) -> Needs:
    """Raises ClawError("invalid_request") for what can not be meant. `headers`: as in `Exchange.wanted`."""
    wanted: set[str] = set()
    size = 0
    for message in request.messages:
        size += _size(message, wanted)
    if request.tools:
        wanted.add("tools")
        for tool in request.tools:
            size += len(tool.name) + len(tool.description or "") + (len(repr(tool.parameters)) if tool.parameters else 0)
    if request.response_format is not None and request.response_format.mode == "json_schema":
        wanted.add("json_schema")
        size += len(repr(request.response_format.schema))
    quality, region = 0, None
    said: Mapping[str, Any] = headers
    prefix = "x-claw-"
    if request.dialect == "claw":
        said, prefix = request.metadata, "metadata."
    if said:
        wanted |= _capabilities(said.get("capabilities"), prefix)
        quality = _quality(said.get("quality"), prefix)
        region = _region(said.get("region"), prefix)
    bound = next((tag.removeprefix(REGION_TAG) for tag in principal.tags if tag.startswith(REGION_TAG)), None)
    return Needs(
        frozenset(wanted),
        size // BYTES_PER_TOKEN + MESSAGE_TOKENS * len(request.messages),
        request.max_tokens,
        quality,
        bound or region,
        bound is not None,
    )


def _size(message: Message, wanted: set[str]) -> int:
    """Its text in bytes; media count as `MEDIA_TOKENS`."""
    content = message.content
    if isinstance(content, str):
        size = text_bytes(content)
    else:
        size = 0
        for part in content or ():
            kind = _PARTS.get(type(part))
            if kind is None:
                size += text_bytes(getattr(part, "text", ""))
            else:
                wanted.add(kind)
                size += MEDIA_TOKENS * BYTES_PER_TOKEN
    if message.tool_calls or message.role == "tool":
        wanted.add("tools")
        size += sum(text_bytes(call.name) + text_bytes(call.arguments) for call in message.tool_calls)
    return size


def _capabilities(said: object, prefix: str) -> set[str]:
    if said is None:
        return set()
    if not isinstance(said, str):
        raise _invalid(prefix + "capabilities", 'must be a string, like "tools, images"')
    tags = {tag for tag in re.split(r"[,\s]+", said) if tag}
    if len(tags) > MOST_ASKED or not all(_TAG.fullmatch(tag) for tag in tags):
        raise _invalid(prefix + "capabilities", f'must be at most {MOST_ASKED} names, like "tools, images"')
    return tags


def _quality(said: object, prefix: str) -> int:
    if isinstance(said, str) and said.isdecimal() and said.isascii() and len(said) <= 4:
        said = int(said)
    if said is None:
        return 0
    if type(said) is not int or not 0 <= said <= 1000:
        raise _invalid(prefix + "quality", "must be a whole number from 0 to 1000")
    return said


def _region(said: object, prefix: str) -> str | None:
    if said is None:
        return None
    if not isinstance(said, str) or not _TAG.fullmatch(said):
        raise _invalid(prefix + "region", 'must be the name of a region, like "eu"')
    return said


def _invalid(name: str, sentence: str) -> ClawError:
    return ClawError("invalid_request", f"`{name}` {sentence}.", param=name)
