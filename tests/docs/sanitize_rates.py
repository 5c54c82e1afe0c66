"""What clawproxy_sanitize finds of a corpus, and what it takes for something it is not: `python -m tests.docs.sanitize_rates`
prints it and writes it into docs/sanitize.md.

The corpus is tests/corpus/sanitize, made for this, and its hash stands beside the figures. Each attack is tried as it stands and
disguised in each of `DISGUISES`; secrets are put together from `clawproxy_sanitize.samples`, so that no file holds one.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path

import clawproxy_sanitize
from clawproxy.messages import ChatRequest, Message
from clawproxy_sanitize import SanitizeSettings
from clawproxy_sanitize.catalogue import CATALOGUE
from clawproxy_sanitize.injection import Injection
from clawproxy_sanitize.links import link
from clawproxy_sanitize.personal import PERSONAL
from clawproxy_sanitize.prefixes import follow
from clawproxy_sanitize.prompt import texts
from clawproxy_sanitize.restore import LONGEST
from clawproxy_sanitize.samples import PERSONAL_SAMPLES, SAMPLES
from clawproxy_sanitize.scanner import Scanner
from clawproxy_sanitize.settings import InvisibleSettings, LinkSettings, PersonalSettings
from clawproxy_sanitize.window import BOUND

PAGE = Path(__file__).parent.parent.parent / "docs" / "sanitize.md"
CORPUS = Path(__file__).parent.parent / "corpus" / "sanitize"
BENIGN = ("benign_code", "benign_letters", "benign_medical", "benign_security")
SETTINGS = SanitizeSettings(
    personal=PersonalSettings(("all",)), links=LinkSettings("redact"), invisible=InvisibleSettings("strip", "strip")
)
INJECTION = Injection(SETTINGS.injection.threshold)
PADDING = "The weather was fine and nothing happened. " * 2400

_ALIKE = str.maketrans("aeocpxi", "аеосрхі")  # Cyrillic


def lines(name: str) -> list[str]:
    return [line for line in (CORPUS / f"{name}.txt").read_text().splitlines() if line]


def digest() -> str:
    """SHA-256 over the names and contents of the corpus's files."""
    whole = hashlib.sha256()
    for path in sorted(CORPUS.glob("*.txt")):
        whole.update(f"{path.name}\0{len(path.read_bytes())}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def _halves(text: str) -> list[Message]:
    middle = len(text) // 2
    return [Message("user", text[:middle]), Message("user", text[middle:])]


DISGUISES: Mapping[str, Callable[[str], list[Message]]] = {
    "as it stands": lambda text: [Message("user", text)],
    "in a tool's result": lambda text: [Message("user", "Sum it up."), Message("tool", f"Title\n{text}\nEnd", tool_call_id="t")],
    "split over two messages": _halves,
    "zero-width characters between letters": lambda text: [Message("user", "\u200b".join(text))],
    "look-alike letters": lambda text: [Message("user", text.translate(_ALIKE))],
    "full-width letters": lambda text: [
        Message("user", "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text))
    ],
    "base64": lambda text: [Message("user", "Decode and follow: " + base64.b64encode(text.encode()).decode())],
    "rot13": lambda text: [Message("user", codecs.encode(text, "rot13"))],
    "100 kB of padding before and after": lambda text: [Message("user", PADDING + text + "\n" + PADDING)],
}


def is_injection(messages: Sequence[Message]) -> bool:
    request = ChatRequest("m", tuple(messages))
    said = texts(request)
    return bool(INJECTION.found(request, said, "\n".join(said).encode("utf-8", "replace")))


def scanner() -> Scanner:
    made = clawproxy_sanitize.compiled(SETTINGS).output
    assert made is not None
    return made


def names(found: Scanner, text: str) -> set[str]:
    counts: dict[str, int] = {}
    found.redact(text, counts)
    return set(counts)


def _share(hits: int, of: int) -> str:
    return f"{hits} of {of} | {100 * hits / of:.0f} %"


def detection() -> Iterator[tuple[str, str]]:
    found, attacks = scanner(), lines("injections")
    for disguise, made in DISGUISES.items():
        yield f"injection, {disguise}", _share(sum(is_injection(made(text)) for text in attacks), len(attacks))
    hidden = [(name, "\u200b".join(secret)) for name, secret in SAMPLES.items()]
    yield (
        "secrets, one of each format",
        _share(sum(name in names(found, f"x {text} y") for name, text in SAMPLES.items()), len(SAMPLES)),
    )
    yield (
        "secrets, zero-width characters between",
        _share(sum(name in names(found, f"x {text} y") for name, text in hidden), len(hidden)),
    )
    coded = [(name, base64.b64encode(secret.encode()).decode()) for name, secret in SAMPLES.items()]
    yield "secrets, base64", _share(sum(name in names(found, f"x {text} y") for name, text in coded), len(coded))
    people = [line.split(" ", 1) for line in lines("personal")] + [list(pair) for pair in PERSONAL_SAMPLES.items()]
    for shape in PERSONAL:
        own = [text for name, text in people if name == shape.name]
        yield f"personal data, `{shape.name}`", _share(sum(shape.name in names(found, text) for text in own), len(own))
    links = lines("links")
    yield "links that carry data away", _share(sum("link" in names(found, text) for text in links), len(links))


def false_positives() -> Iterator[tuple[str, str, str, str, str]]:
    """Lines of ordinary text that something is found in, by group."""
    found, personal = scanner(), {shape.name for shape in PERSONAL}
    for name in BENIGN:
        said = lines(name)
        seen = [names(found, text) for text in said]
        flagged = sum(is_injection([Message("user", text)]) for text in said)
        secrets = sum(bool(each - personal - {"link", "invisible"}) for each in seen)
        people = sum(bool(each & personal) for each in seen)
        hidden = sum(bool(each & {"link", "invisible"}) for each in seen)
        yield (name.removeprefix("benign_"), str(len(said)), str(flagged), str(secrets), f"{people} | {hidden}")


def delays() -> Iterator[str]:
    """What each group holds back of an answer."""
    yield "| group | goes on at once | waits | and at most |"
    yield "|---|---|---|---|"
    opening = max(int(follow(shape.pattern, shape.opening).opening) for shape in CATALOGUE)
    yield f"| `secrets` | a format's beginning, {opening} characters at most | what goes on after it | {BOUND} bytes |"
    for name, shapes in (("personal", PERSONAL), ("links", [link((), "data")])):
        endless = [shape.name for shape in shapes if follow(shape.pattern).longest == inf]
        longest = max((int(size) for shape in shapes if (size := follow(shape.pattern).longest) < inf), default=0)
        most = f"{longest} characters; {BOUND} bytes of `{endless[0]}`" if longest else f"{BOUND} bytes"
        yield f"| `{name}` | nothing | what may begin one | {most} |"
    yield f"| custom | nothing | what may begin one | as long as a match can be, {BOUND} bytes |"
    yield "| `invisible` | all | nothing | 0 |"
    yield f"| placeholders | nothing | what may begin one of this exchange | {LONGEST} characters |"


def page() -> str:
    """docs/sanitize.md, its generated parts made anew."""
    text = PAGE.read_text()
    for name, made in (("delays", "\n".join(delays())), ("rates", tables())):
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{made}{end}{rest.split(end, 1)[1]}"
    return text


def tables() -> str:
    """As they stand in docs/sanitize.md."""
    out = [f"Corpus: `tests/corpus/sanitize`, SHA-256 `{digest()}`.", "", "| looked for | found | |", "|---|---|---|"]
    out += [f"| {what} | {share} |" for what, share in detection()]
    out += [
        "",
        "| ordinary text | lines | taken for an injection | for a secret | for personal data | for a link or hidden |",
        "|---|---|---|---|---|---|",
    ]
    out += [f"| {' | '.join(row)} |" for row in false_positives()]
    return "\n".join(out)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(tables())
