"""What the checks of a configuration know and what they find."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from attrs import field, frozen

from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.units import shown


@frozen
class Findings:
    problems: list[tuple[KeyPath, str]] = field(factory=list)
    warnings: list[tuple[KeyPath, str]] = field(factory=list)

    def wrong(self, path: KeyPath, sentence: str) -> None:
        self.problems.append((path, sentence))

    def warn(self, path: KeyPath, sentence: str) -> None:
        self.warnings.append((path, sentence))


@frozen
class Names:
    """What can be named: also the providers and models whose own tables could not be read."""

    providers: Collection[str]
    models: Collection[str]
    plugins: Collection[str]
    dialects: Collection[str]


def check_file(path: Path, where: KeyPath, what: str, found: Findings) -> bool:
    try:
        with path.open("rb") as file:
            file.read(1)
        return True
    except OSError as error:
        found.wrong(where, f"{shown(str(path))} can not be read ({error.strerror}); name {what} that this user may read")
        return False
