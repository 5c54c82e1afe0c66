"""The documentation tells the truth: its plugin works from another folder, its hooks are the hooks, its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clawproxy import hookspecs
from tests.docs import generate

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    return [(info.strip(), code) for lang, info, code in BLOCK.findall(page.read_text()) if lang == language]


def test_the_plugin_of_the_docs_works_from_another_folder(tmp_path: Path) -> None:
    """Written from the page alone, installed from another folder, found by entry point, tested without a socket."""
    page = ROOT / "docs" / "plugins.md"
    folder = tmp_path / "polite"
    folder.mkdir()
    for language in ("python", "toml"):
        for info, code in blocks(page, language):
            if info.startswith("file="):
                (folder / info.removeprefix("file=")).write_text(code)
    target = tmp_path / "installed"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, folder],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    environment = {"PYTHONPATH": f"{target}", "PATH": str(Path(sys.executable).parent)}
    found = subprocess.run(
        [sys.executable, "-c", "from clawproxy.pipeline import Plugins; print(Plugins(['polite', 'auth']).names)"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert found.stdout.strip() == "['polite', 'auth']", found.stderr
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "trio_mode=true", "test_polite.py"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for _, code in blocks(page, "python"):
        compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_hook_is_documented_with_its_arguments() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    for name, value in vars(hookspecs).items():
        if hasattr(value, "clawproxy_spec"):
            assert f"`{name}({', '.join(inspect.signature(value).parameters)})`" in page


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_in_step(name: str) -> None:
    assert (generate.DOCS / name).read_text() == generate.PAGES[name](), "run `make docs`"
