"""The configurations on docs/tls.md and docs/credentials.md are good ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme

from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from clawproxy.servertls import tls_context

PLUGINS = Plugins(PipelineConfig().order)
DOCS = Path(__file__).parent.parent.parent / "docs"
BLOCKS = [
    (page, code)
    for page in ("tls.md", "credentials.md")
    for code in re.findall(r"^```toml\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_the_page(page: str, code: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("gateway.example")
    (tmp_path / "tls").mkdir()
    for name in re.findall(r'"(tls/[a-z-]+\.pem)"', code):
        if name.endswith("-key.pem"):
            leaf.private_key_pem.write_to_path(str(tmp_path / name))
        elif name.endswith("-ca.pem"):
            authority.cert_pem.write_to_path(str(tmp_path / name))
        else:
            (tmp_path / name).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    file = tmp_path / "clawproxy.toml"
    file.write_text(code)
    loaded = load(file, settings=PLUGINS.registry.settings, known_plugins=PLUGINS.names, environ={})
    assert loaded.warnings == []
    if loaded.config.server.tls is not None:
        tls_context(loaded.config.server.tls)
