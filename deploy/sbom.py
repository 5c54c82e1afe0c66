"""Write `sbom.json`: the software bill of materials of ClawProxy (CycloneDX 1.6), from `requirements.lock` and setup.cfg.

The same lock gives the same bytes: there is no time and no chance in it. Licences are those that installed packages state.
"""

from __future__ import annotations

import json
import re
import uuid
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: *;([^\\]*?))?(?: *\\)?$", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """By normalised name: version and SHA-256 of every file."""
    found: dict[str, tuple[str, list[str]]] = {}
    pins = list(_PIN.finditer(text))
    for pin, after in zip(pins, [*pins[1:], None], strict=True):
        lines = text[pin.end() : after.start() if after else len(text)]
        found[normal(pin[1])] = pin[2], _HASH.findall(lines)
    return found


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct(config: ConfigParser) -> dict[str, str]:
    """By normalised name: the extra that asks for it, or "" for what is always there."""
    found: dict[str, str] = {}
    sections = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    for extra, lines in sections.items():
        for line in lines.splitlines():
            if extra != "dev" and line.strip() and not line.strip().startswith("#"):
                found.setdefault(normal(re.split(r"[ <>=!~;\[]", line.strip())[0]), extra)
    return found


def licence(name: str) -> list[dict[str, Any]]:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    said = about.get("License-Expression")
    return [{"expression": said}] if said else []


def bill(lock: str, setup: str) -> dict[str, Any]:
    config = ConfigParser()
    config.read_string(setup)
    packages, asked = locked(lock), direct(config)
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "clawproxy" / "_version.py").read_text())
    assert version
    us = f"pkg:pypi/clawproxy@{version[1]}"
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{pin}",
            "name": name,
            "version": pin,
            "purl": f"pkg:pypi/{name}@{pin}",
            "scope": "optional" if asked.get(name) else "required",
            "hashes": [{"alg": "SHA-256", "content": each} for each in hashes],
            **({"licenses": said} if (said := licence(name)) else {}),
        }
        for name, (pin, hashes) in sorted(packages.items())
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, us + lock)}",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": us, "name": "clawproxy", "version": version[1], "purl": us,
                          "licenses": [{"license": {"id": "MIT"}}]}
        },
        "components": components,
        "dependencies": [{"ref": us, "dependsOn": [f"pkg:pypi/{name}@{packages[name][0]}" for name in sorted(asked)]}],
    }  # fmt: skip


def main() -> None:
    made = bill((ROOT / "requirements.lock").read_text(), (ROOT / "setup.cfg").read_text())
    (ROOT / "sbom.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
