"""Texts that try to instruct the model against who uses it: known wordings, weighed and added up.

Rule 1: this reduces known patterns. It prevents no injection: what is said in other words, in other languages, or in pictures
        passes. Flagging is the default; blocking is the operator's choice, with the rates in docs/sanitize.md in view.
Rule 2: the texts a request brings from outside are weighed, all roles but `system` and `developer`, tools' descriptions too: each
        wording counts once, however often it comes.
Rule 3: the wordings are also looked for in what a text hides: invisible and look-alike characters, base64, rot13, a break between
        two messages. What had to be unwrapped weighs half as much more.
Rule 4: the common text costs one look of one automaton; the rest is done only where that found something.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

import re2
from attrs import frozen

from clawproxy.messages import ChatRequest
from clawproxy_sanitize.invisible import GATE, stripped
from clawproxy_sanitize.prompt import texts

UNWRAPPED: Final = 256 * 1024
"""Characters that are unwrapped at most."""
SEAM: Final = 48
"""Characters of each side of the break between two texts."""
HIDDEN_WEIGHT: Final = 0.5


@frozen
class Wording:
    name: str
    weight: float
    pattern: str


_S = r"[\s\"'*_.,:;()-]+"
_BEFORE = (
    r"(?:previous|prior|above|earlier|preceding|foregoing|past|former|existing|original|initial|system|current|safety"
    r"|developer)"
)
_RULES = r"(?:instruction|direction|prompt|rule|guideline|command|order|message|polic|constraint|restriction|training|context)"
_DROP = (
    r"(?:ignore|disregard|forget|override|bypass|neglect|discard|do not follow|don't follow|stop following|pay no attention to)"
)
_TREASURE = (
    r"(?:api keys?|passwords?|credentials|conversation|chat history|secrets?|access tokens?|environment variables|ssh keys?)"
)

WORDINGS: tuple[Wording, ...] = (
    Wording("override", 1.0, rf"(?i:\b{_DROP}{_S}(?:[a-z']+{_S}){{0,4}}{_BEFORE}{_S}(?:[a-z]+{_S}){{0,3}}{_RULES})"),
    Wording(
        "override_all",
        1.0,
        rf"(?i:\b{_DROP}{_S}(?:all{_S}|of{_S}){{0,2}}(?:everything{_S}(?:above|before|you|that|said)|(?:your"
        rf"|my){_S}(?:[a-z]+{_S}){{0,2}}"
        rf"{_RULES}))",
    ),
    Wording(
        "reveal",
        0.8,
        rf"(?i:\b(?:reveal|print|show|repeat|output|display|leak|dump|recite|tell me|give me|write out|what (?:is|are|was)){_S}"
        rf"(?:[a-z]+{_S}){{0,3}}(?:system{_S}(?:prompt|message)|(?:initial|hidden|original"
        rf"|secret){_S}(?:instructions|prompt)"
        rf"|(?:instructions|prompt|text|words){_S}above))",
    ),
    Wording(
        "persona",
        0.8,
        r"(?i:\bdo anything now\b|\bdeveloper mode (?:is )?(?:now )?(?:enabled|on|activated)|\bjailbr(?:eak|oken) mode"
        r"|\b(?:act as|pretend to be|you are now|become|roleplay as) (?:an? )?(?:ai |model |assistant )?"
        r"(?:DAN\b|unrestricted|unfiltered|uncensored|jailbroken|evil)"
        r"|\bno longer (?:bound|restricted|limited) by|\bwithout any (?:restrictions|filters|ethical))",
    ),
    Wording(
        "new_orders",
        0.6,
        r"(?i:\b(?:new|updated|real|actual|revised|urgent) (?:system )?(?:instructions?|prompt|task|directives?"
        r"|orders)\b\s{0,2}[:.]"
        r"|\bfrom now on,? you (?:will|must|shall|are)\b|\byour (?:new|real|true) (?:task|goal|purpose"
        r"|instructions?) (?:is|are)\b)",
    ),
    Wording(
        "role_marks",
        0.6,
        r"(?i:<\|(?:im_start|system|start_header_id|begin_of_text)\|>|\[/?INST\]|<</?SYS>>|</?(?:system|system_prompt"
        r"|important)>"
        r"|\[system\]|#{2,3} ?system\b|\bsystem (?:override|update|notice):|\bend of (?:user )?(?:document|input|prompt"
        r"|data)\b)",
    ),
    Wording(
        "secrecy",
        0.6,
        rf"(?i:\b(?:do not|don't|never|without) (?:tell|inform|mention|reveal|notify|alert|telling|informing|notifying"
        rf"|mentioning)"
        rf"{_S}(?:[a-z]+{_S}){{0,3}}(?:user|human|anyone|anybody|owner)\b)",
    ),
    Wording(
        "exfiltrate",
        0.8,
        rf"(?i:\b(?:send|post|forward|exfiltrate|upload|transmit|e-?mail|append|encode"
        rf"|leak){_S}(?:[a-z']+{_S}){{0,5}}{_TREASURE}{_S}"
        rf"(?:[a-z']+{_S}){{0,5}}(?:to|into|in|at){_S}(?:[a-z']+{_S}){{0,2}}(?:https?:|url|www"
        rf"|[a-z0-9.]{{1,30}}@|webhook|server|attacker))",
    ),
    Wording(
        "addressed",
        0.6,
        r"(?i:\b(?:attention|important|note|notice|instructions?|message) (?:to|for) (?:the |any |all )?(?:AI|LLM"
        r"|language model|assistant|"
        r"agent|chatbot|model)s?\b|\b(?:AI|LLM|assistant|language model|agent|chatbot)s?,? (?:reading|processing"
        r"|analy[sz]ing|summari[sz]ing|"
        r"reviewing|when you read) this\b|\bif you are an? (?:AI|LLM|language model|assistant)\b)",
    ),
    Wording(
        "files",
        0.6,
        r"(?i:\b(?:read|open|cat|fetch|include) (?:the )?(?:file |contents? of )?(?:~/|/etc/|/root/|/home/)?[a-z./_-]{0,20}"
        r"(?:\.ssh/|\.env\b|id_rsa|/etc/passwd|mcp\.json|\.aws/|credentials\.json))",
    ),
    Wording(
        "override_other",
        1.0,
        r"(?i:\b(?:ignorieren? sie|ignoriere|vergiss|vergessen sie|missachte)\s(?:\S+\s){0,4}(?:anweisung|regel"
        r"|vorgabe|instruktion)"
        r"|\b(?:ignore[zr]?|oublie[zr]?)\s(?:\S+\s){0,3}(?:instructions|consignes|règles)\s(?:\S+\s)?"
        r"(?:précédentes|antérieures|ci-dessus)"
        r"|\b(?:ignora|ignore|olvida|olvide)\s(?:\S+\s){0,3}(?:instrucciones|reglas|órdenes"
        r"|indicaciones)\s(?:\S+\s)?(?:anteriores|previas)"
        r"|\b(?:ignora|dimentica)\s(?:\S+\s){0,3}(?:istruzioni|regole)\s(?:\S+\s)?precedenti"
        r"|\b(?:ignore|esqueça)\s(?:\S+\s){0,3}(?:instruções|regras)\s(?:\S+\s)?(?:anteriores|acima)"
        r"|(?:игнорируй|забудь)(?:те)?\s(?:\S+\s){0,3}(?:инструкции|указания|правила)"
        r"|(?:忽略|无视|忘记)(?:你)?(?:之前|以上|前面|上面|所有|先前)\S{0,6}(?:指令|指示|提示|规则|说明)"
        r"|(?:以前|上記|これまで|前)の(?:すべての)?(?:指示|命令|ルール)を(?:すべて)?(?:無視|忘れ))",
    ),
)
_ROT13 = (
    r"(?i:\b(?:vtaber|qvfertneq|sbetrg|erirny|bireevqr|olcnff|artyrpg|cerivbhf|nobir|cevbe|vafgehpgvbaf?|cebzcg|ehyrf|flfgrz|frperg)"
    r"\s[a-z]+\b)"
)
_BASE64 = r"[A-Za-z0-9+/]{32}"
_LOOK_ALIKE = (
    r"[A-Za-z][\p{Cyrillic}\p{Greek}]|[\p{Cyrillic}\p{Greek}][A-Za-z]"
    r"|[\x{1d400}-\x{1d7ff}\x{ff21}-\x{ff5a}\x{24b6}-\x{24e9}]{3}"
)
_RUN = re2.compile(rb"[A-Za-z0-9+/]{32,}")
_FOLD = str.maketrans(dict(zip(
    "аеорсухіјѕһԁԛԝьΑΒΕΖΗΙΚΜΝΟΡΤΥΧαεικνορτυχϲАВЕКМНОРСТХІЈЅ",
    "aeopcyxijshdqwbABEZHIKMNOPTYXaeiknoptuxcABEKMHOPCTXIJS",
    strict=True,
)))  # fmt: skip
"""Letters of other scripts that look like Latin ones, those that are used for it (Unicode's confusables.txt has thousands)."""


PATTERNS = (*(wording.pattern for wording in WORDINGS), _ROT13, _BASE64, _LOOK_ALIKE, GATE)
"""The wordings, then what tells that something may have to be unwrapped."""


class Injection:
    """The wordings, compiled."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        chosen = re2.Options()
        chosen.log_errors = False
        chosen.never_capture = True
        chosen.max_mem = 64 << 20
        self._set: Any = re2.Set.SearchSet(chosen)
        for pattern in PATTERNS:
            self._set.Add(pattern.encode())
        self._set.Compile()

    def found(self, request: ChatRequest, said: Sequence[str], data: bytes) -> dict[str, float]:
        """What each wording found weighs: empty below the threshold.

        Args:
            said: all texts of the request.
            data: the same as UTF-8, a line break between them.
        """
        hits = self._set.Match(data if len(said) < 2 else b"%b\n%b" % (data, _encode(_seams(said))))
        if not hits:
            return {}
        weights: dict[str, float] = {}
        outside = _outside(request)
        plain = "\n".join((*outside, _seams(outside)))
        if min(hits) < len(WORDINGS):
            hits = self._hits(_encode(plain))  # the application's own texts do not count
            weights = {WORDINGS[hit].name: WORDINGS[hit].weight for hit in hits if hit < len(WORDINGS)}
        if max(hits, default=0) >= len(WORDINGS):
            for hidden in _unwrapped(plain[:UNWRAPPED], {hit - len(WORDINGS) for hit in hits}):
                for hit in self._hits(_encode(hidden)):
                    if hit < len(WORDINGS) and WORDINGS[hit].name not in weights:
                        weights[WORDINGS[hit].name] = WORDINGS[hit].weight + HIDDEN_WEIGHT
        return weights if sum(weights.values()) >= self.threshold else {}

    def _hits(self, data: bytes) -> Sequence[int]:
        return self._set.Match(data) or ()


def _outside(request: ChatRequest) -> list[str]:
    """The texts that are not the application's own."""
    own = ("system", "developer")
    return texts(ChatRequest("", tuple(each for each in request.messages if each.role not in own), tools=request.tools))


def _seams(said: Sequence[str]) -> str:
    return "\n".join([one[-SEAM:] + other[:SEAM] for one, other in itertools.pairwise(said)])


def _unwrapped(text: str, how: set[int]) -> Iterable[str]:
    if 0 in how:
        yield codecs.encode(text, "rot13")
    if 1 in how and (said := "\n".join(filter(None, map(_from_base64, _RUN.findall(_encode(text)))))):
        yield said
    if 2 in how or 3 in how:
        yield unicodedata.normalize("NFKC", stripped(text)[0]).translate(_FOLD)


def _from_base64(run: bytes) -> str:
    """What it says, where it says something."""
    try:
        said = base64.b64decode(run[: len(run) // 4 * 4]).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return said


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")
