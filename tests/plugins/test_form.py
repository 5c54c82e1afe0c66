"""The built-in plugins are laid out as a visitor's would be: hooks pluggy accepts, and public imports only."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pluggy
import pytest

from clawproxy import hookspecs

PLUGINS = ["clawproxy_auth", "clawproxy_sanitize", "clawproxy_truncate", "clawproxy_router", "clawproxy_cache"]
PUBLIC = {
    "clawproxy.config",
    "clawproxy.config.schema",
    "clawproxy.context",
    "clawproxy.costs",
    "clawproxy.counting",
    "clawproxy.errors",
    "clawproxy.fetch",
    "clawproxy.events",
    "clawproxy.hookspecs",
    "clawproxy.keys",
    "clawproxy.messages",
    "clawproxy.rates",
    "clawproxy.secrets",
    "clawproxy.stores.base",
}
FOREIGN = {"attrs", "trio", "re2", "msgspec", "joserfc", "cryptography"}
"""What they may lean on beside the standard library: dependencies of ClawProxy itself, the last two of its extras."""


@pytest.mark.parametrize("name", PLUGINS)
def test_pluggy_accepts_its_hooks(name: str) -> None:
    manager = pluggy.PluginManager("clawproxy")
    manager.add_hookspecs(hookspecs)
    module = importlib.import_module(name)
    manager.register(module)
    manager.check_pending()
    callers = manager.get_hookcallers(module)
    assert callers is not None
    assert {"register", "configure"} <= {caller.name for caller in callers}
    for caller in callers:
        spec, hook = getattr(hookspecs, caller.name), getattr(module, caller.name)
        assert inspect.iscoroutinefunction(spec) == inspect.iscoroutinefunction(hook), caller.name


def imported(source: str) -> set[str]:
    """The modules a source file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


@pytest.mark.parametrize("name", PLUGINS)
def test_it_imports_public_modules_only(name: str) -> None:
    folder = importlib.import_module(name).__file__
    assert folder is not None
    files = list(Path(folder).parent.rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path.read_text("utf-8")):
            top = module.split(".")[0]
            if top == "clawproxy":
                assert module in PUBLIC, f"{path.name} imports {module}"
            elif top in PLUGINS:
                assert top == name, f"{path.name} imports {module}"
            else:
                assert top in FOREIGN or _is_standard(top), f"{path.name} imports {module}"


def test_the_walk_sees_every_way_to_import() -> None:
    assert imported("import a.b\nfrom c.d import e\nif 1:\n    from . import f\ndef g():\n    import asyncio") == {
        "a.b", "c.d", ".", "asyncio",
    }  # fmt: skip


def _is_standard(top: str) -> bool:
    return top in sys.stdlib_module_names and top != "asyncio"
