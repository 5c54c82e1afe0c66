"""The shape of the code: who may import whom, how large a file may be, what must not appear. A ratchet, not a wish."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "clawproxy").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
ALL = [*CORE, *PLUGINS, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]

LONGEST = 400
LONGER_WITH_A_REASON: dict[str, int] = {}

# Layers, lowest first. A module may import its own layer and those below.
LAYERS: list[tuple[int, str]] = [
    (
        0,
        r"clawproxy\.(errors|messages|events|clocks|alarms|secrets|lifetime|context|hookspecs|service|keys|values|done|_version)$",
    ),
    (0, r"clawproxy\.steering$"),
    (0, r"clawproxy\.(config|rates)(\..*)?$"),
    (0, r"clawproxy\.(costs|counting)$"),
    (0, r"clawproxy\.stores\.base$"),
    (0, r"clawproxy\.http1\.head$"),  # a value: formats that say things in path and headers read it
    (1, r"clawproxy\.(http1|dialects|pipeline|stores|scripted)(\..*)?$"),
    (2, r"clawproxy\.(transport|upstream|ops)(\..*)?$"),
    (2, r"clawproxy\.fetch$"),
    (
        3,
        r"clawproxy\.(admission|asking|attempts|continuing|detours|draining|exchange|exchange_clock|gateway|hedging|lastresort|listeners|rate)$",
    ),
    (3, r"clawproxy\.(servertls|reach)$"),
    (4, r"clawproxy\.(server|recheck|reload|testing|doctor)(\..*)?$"),
    (5, r"clawproxy\.(cli|__main__)(\..*)?$"),
    (0, r"clawproxy$"),
]
SIBLINGS_APART = [("clawproxy.transport", "clawproxy.upstream"), ("clawproxy.http1", "clawproxy.dialects")]
NURSERIES = {
    "clawproxy/hedging.py",  # two attempts of one request, and only where it may be hedged
    "clawproxy/server.py",
    "clawproxy/stores/sqlite.py",  # the service's own: folding, and closings that wait for company
    "clawproxy/transport/front.py",  # the service's own tickers, not a request's
    "clawproxy/transport/pulse.py",
    "clawproxy/upstream/providers.py",  # a task for each credential that is fetched
    "clawproxy/upstream/dial.py",  # racing a host's addresses
    "clawproxy/transport/websocket/session.py",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when this one is): imports inside functions and TYPE_CHECKING are not."""
    tree = ast.parse(path.read_text())
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late.update(ast.walk(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            late.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in late
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node not in late


def layer(module: str) -> int | None:
    for number, pattern in LAYERS:
        if re.match(pattern, module):
            return number
    return None


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    own = module_name(path)
    mine = layer(own)
    assert mine is not None, f"{own} has no layer: put it in LAYERS"
    for target, at_import in imports(path):
        if not target.startswith("clawproxy") or not at_import:
            continue
        theirs = layer(target)
        assert theirs is not None, f"{own} imports {target}, which has no layer"
        assert theirs <= mine, f"{own} (layer {mine}) imports {target} (layer {theirs})"
        if theirs == 0:
            continue
        for left, right in SIBLINGS_APART:
            assert not (own.startswith(left) and target.startswith(right)), f"{own} imports its sibling {target}"
            assert not (own.startswith(right) and target.startswith(left)), f"{own} imports its sibling {target}"


FORMATS = [path for path in CORE if re.match(r"clawproxy/(dialects|http1)/", str(path.relative_to(ROOT)))]


@pytest.mark.parametrize("path", FORMATS, ids=module_name)
def test_formats_do_no_io(path: Path) -> None:
    for target, _ in imports(path):
        assert target.split(".")[0] not in {"trio", "socket", "ssl", "select"}, f"{path} imports {target}"


@pytest.mark.parametrize("path", PLUGINS, ids=module_name)
def test_plugins_use_only_public_modules(path: Path) -> None:
    names = "hookspecs|messages|events|errors|context|config|secrets|keys|clocks|fetch|costs|counting|rates"
    public = re.compile(rf"clawproxy(\.({names})|\.stores\.base)?$")
    for target, _ in imports(path):
        if target.startswith("clawproxy.") or target == "clawproxy":
            assert public.match(target), f"{path} imports {target}"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=module_name)
def test_no_file_is_too_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    allowed = LONGER_WITH_A_REASON.get(str(path.relative_to(ROOT)), LONGEST)
    assert lines <= allowed, f"{path} has {lines} lines"


def test_the_list_of_long_files_only_shrinks() -> None:
    for name, allowed in LONGER_WITH_A_REASON.items():
        assert LONGEST < len((ROOT / name).read_text().splitlines()) <= allowed, f"{name}: update or remove its entry"


@pytest.mark.parametrize("path", ALL, ids=str)
def test_no_asyncio(path: Path) -> None:
    assert not [target for target, _ in imports(path) if target.split(".")[0] in {"asyncio", "anyio"}]


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=module_name)
def test_nurseries_are_opened_in_known_places(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name in NURSERIES or name.startswith(("clawproxy/scripted/", "clawproxy/testing/", "clawproxy/cli/")):
        return
    assert "open_nursery" not in path.read_text(), f"{name} opens a nursery"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=module_name)
def test_no_async_generators_outside_context_managers(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AsyncFunctionDef):
            own = [n for n in ast.walk(node) if isinstance(n, ast.Yield | ast.YieldFrom)]
            if own:
                names = {ast.unparse(decorator) for decorator in node.decorator_list}
                assert names & {"asynccontextmanager", "contextlib.asynccontextmanager"}, f"{path}:{node.lineno} {node.name}"


def test_every_package_is_shipped() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    shipped = set(config["options"]["packages"].split())
    here = {module_name(path) for path in CORE if path.name == "__init__.py"}
    here |= {".".join(path.parent.relative_to(ROOT / "plugins").parts) for path in PLUGINS if path.name == "__init__.py"}
    assert shipped == here
