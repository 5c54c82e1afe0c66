"""What is installed with the gateway: few packages, each on a list with a reason, pinned with hashes, in a bill of materials."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
EXTRAS = ("control", "crypto", "tokenizers")

DIRECT = {
    "trio": "time, tasks, cancellation",
    "trio-websocket": "WebSockets of `clawproxy chat`",
    "wsproto": "WebSocket frames",
    "h11": "HTTP/1.1, the reference engine",
    "httptools": "HTTP/1.1, the fast engine",
    "pluggy": "finds plugins",
    "attrs": "values",
    "cattrs": "configuration into values",
    "msgspec": "JSON",
    "click": "the command line",
    "rich": "terminal output",
    "google-re2": "patterns in linear time",
    "prometheus-client": "metrics as text",
    "outcome": "trio's own, to wake a task with a value",
}
"""Without an extra. 16 at most."""
OPTIONAL = {
    "joserfc": "control: JSON Web Tokens",
    "httpcore2": "control: small requests of the control plane",
    "cryptography": "crypto: content kept in the audit log",
    "bpe-openai": "tokenizers: exact counts",
}
INDIRECT = {
    "cffi": "cryptography; trio on Windows",
    "idna": "trio, for names",
    "markdown-it-py": "rich",
    "mdurl": "rich",
    "pycparser": "cffi",
    "pygments": "rich",
    "sniffio": "trio",
    "sortedcontainers": "trio",
    "truststore": "httpcore2",
    "typing-extensions": "cattrs",
    "exceptiongroup": "older Pythons",
    "colorama": "click on Windows",
    "anyio": "httpcore2",
    "certifi": "httpcore2",
}
IMPORTS = {"re2": "google-re2", "attr": "attrs"}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", ROOT / "deploy" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SBOM = script("sbom")
LOCK = (ROOT / "requirements.lock").read_text()
SETUP = (ROOT / "setup.cfg").read_text()


def asked() -> dict[str, list[Requirement]]:
    """Requirements by extra; "" for what is always there."""
    config = ConfigParser()
    config.read_string(SETUP)
    sections = {"": config["options"]["install_requires"], **{extra: config["options.extras_require"][extra] for extra in EXTRAS}}
    lines = {extra: [line.strip() for line in text.splitlines()] for extra, text in sections.items()}
    return {extra: [Requirement(line) for line in each if line and not line.startswith("#")] for extra, each in lines.items()}


def test_the_packages_are_few_and_each_has_a_reason() -> None:
    """At most 16 direct ones and 40 in all; extras are counted apart."""
    requirements = asked()
    assert {SBOM.normal(each.name) for each in requirements.pop("")} == set(DIRECT)
    assert {SBOM.normal(each.name) for extra in requirements.values() for each in extra} == set(OPTIONAL)
    assert len(DIRECT) <= 16
    packages = set(SBOM.locked(LOCK))
    assert packages <= set(DIRECT) | set(OPTIONAL) | set(INDIRECT), "not on the list"
    assert set(DIRECT) | set(OPTIONAL) <= packages
    assert len(packages - set(OPTIONAL)) <= 40
    assert not (set(DIRECT) | set(OPTIONAL)) & set(INDIRECT)


def test_the_lock_satisfies_setup_cfg() -> None:
    packages = SBOM.locked(LOCK)
    for requirement in [each for extra in asked().values() for each in extra]:
        version, _ = packages[SBOM.normal(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{requirement}: {version} is locked; run `make lock`"


def test_every_package_of_the_lock_has_hashes_and_no_address() -> None:
    packages = SBOM.locked(LOCK)
    assert len(packages) == len(re.findall(r"^[a-z].*==", LOCK, re.MULTILINE))
    for name, (version, hashes) in packages.items():
        assert version
        assert hashes, name
        assert len(set(hashes)) == len(hashes)
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|-f|--index|--extra-index|--find-links|--trusted)", LOCK, re.MULTILINE)


def test_the_lock_is_closed() -> None:
    """What its packages need here is in it, so that `--require-hashes` has something to say about everything."""
    packages = set(SBOM.locked(LOCK))
    for name in packages:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                assert SBOM.normal(each.name) in packages, f"{name} needs {each}; run `make lock`"


NOT_NEEDED = {("generate.py", "genai_prices"), ("democlient.py", "openai")}
"""A developer's script makes the rate card of the one; the demonstration uses the other where it is there."""


def test_the_code_imports_nothing_else() -> None:
    allowed = {*DIRECT, *OPTIONAL}
    for path in [*(ROOT / "clawproxy").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in (each.partition(".")[0] for each in names):
                if (path.name, name) in NOT_NEEDED:
                    continue
                if name not in sys.stdlib_module_names and not name.startswith("clawproxy"):
                    assert IMPORTS.get(name, name.replace("_", "-")) in allowed, f"{path}: {name}"


def test_the_bill_of_materials() -> None:
    """CycloneDX: every package with its version, URL and hashes; the same twice."""
    made = SBOM.bill(LOCK, SETUP)
    assert json.dumps(made) == json.dumps(SBOM.bill(LOCK, SETUP))
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made["serialNumber"])
    names = {each["name"]: each for each in made["components"]}
    assert set(names) == set(SBOM.locked(LOCK))
    assert {name for name, each in names.items() if each["scope"] == "optional"} == set(OPTIONAL)
    references = {each["bom-ref"] for each in made["components"]}
    assert len(references) == len(names)
    [ours] = made["dependencies"]
    assert set(ours["dependsOn"]) <= references
    assert len(ours["dependsOn"]) == len(DIRECT) + len(OPTIONAL)
    for each in made["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert all(re.fullmatch("[0-9a-f]{64}", digest["content"]) for digest in each["hashes"])
