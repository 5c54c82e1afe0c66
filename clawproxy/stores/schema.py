"""The embedded database's tables, and how those of older versions become them.

    keys       client keys
    ledger     a row per attempt
    labels     who asked for what, of whom: the same for many rows of the ledger, so it is written once
    endings    how attempts ended: there are few ways
    attempts   a view: the ledger with its labels and endings, one column per field. Everything reads this
    segments   how far each journal segment is folded
    holds, totals    `books`

Rule 1: a database of a newer version is refused, never migrated down, never guessed at. An older one is brought up when it is
        opened, in one transaction (`_STEPS`). What it did not know is NULL then, which is "not known".
Rule 2: steps of before are never changed: a database that has taken them would differ from one that takes them now.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from clawproxy.errors import ConfigError

VERSION: Final = 6

_TABLES = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, prefix TEXT NOT NULL, created REAL NOT NULL,
    expires REAL, revoked REAL, "user" TEXT, team TEXT, app TEXT, roles TEXT NOT NULL, tags TEXT NOT NULL,
    models TEXT NOT NULL, may_assert INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_name ON keys (name);
CREATE TABLE attempts (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL, opened REAL NOT NULL,
    instance TEXT NOT NULL, generation INTEGER NOT NULL, "key" TEXT NOT NULL, "user" TEXT, team TEXT, app TEXT,
    model TEXT NOT NULL, provider TEXT NOT NULL, provider_model TEXT NOT NULL,
    reserved_input INTEGER NOT NULL, reserved_output INTEGER,
    closed REAL, outcome TEXT, sent INTEGER, input_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER,
    reasoning_tokens INTEGER, source TEXT, cost_nano INTEGER
) WITHOUT ROWID;
CREATE INDEX attempts_opened ON attempts (opened);
CREATE TABLE segments (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folded INTEGER NOT NULL)
"""

_ACCOUNTS = """
CREATE TABLE IF NOT EXISTS holds (id TEXT NOT NULL, entries TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS holds_id ON holds (id);
CREATE TABLE IF NOT EXISTS totals (
    scope TEXT NOT NULL, unit TEXT NOT NULL, "window" TEXT NOT NULL, sliding INTEGER NOT NULL, period INTEGER NOT NULL,
    used INTEGER NOT NULL, overrun INTEGER NOT NULL, PRIMARY KEY (scope, unit, "window", sliding, period)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS totals_period ON totals ("window", sliding, period);
CREATE INDEX IF NOT EXISTS attempts_open ON attempts (id) WHERE closed IS NULL
"""

_CLASSES = """
ALTER TABLE attempts ADD COLUMN cache_write_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN cache_write_1h_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN cached_audio_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN audio_input_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN audio_output_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN image_input_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN image_output_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN service_tier TEXT;
ALTER TABLE attempts ADD COLUMN card TEXT
"""


def _of(table: str, names: str) -> str:
    return ", ".join(f"{table}.{name}" for name in names.split(", "))


_LABELS = 'instance, generation, "key", "user", team, app, model, provider, provider_model'
_ENDING = "outcome, sent, source, service_tier, card"
_FIGURES = """reserved_input, reserved_output, reserved_nano, closed, input_tokens, output_tokens, cached_tokens,
    reasoning_tokens, cost_nano, cache_write_tokens, cache_write_1h_tokens, cached_audio_tokens, audio_input_tokens,
    audio_output_tokens, image_input_tokens, image_output_tokens"""

_LEDGER = f"""
CREATE TABLE labels (
    n INTEGER PRIMARY KEY, line TEXT NOT NULL UNIQUE, instance TEXT NOT NULL, generation INTEGER NOT NULL, "key" TEXT NOT NULL,
    "user" TEXT, team TEXT, app TEXT, model TEXT NOT NULL, provider TEXT NOT NULL, provider_model TEXT NOT NULL
);
CREATE TABLE endings (
    n INTEGER PRIMARY KEY, line TEXT NOT NULL UNIQUE, outcome TEXT, sent INTEGER, source TEXT, service_tier TEXT, card TEXT
);
CREATE TABLE ledger (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, labels INTEGER NOT NULL, opened REAL NOT NULL,
    reserved_input INTEGER NOT NULL, reserved_output INTEGER, reserved_nano INTEGER, closed REAL, ending INTEGER,
    input_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER, reasoning_tokens INTEGER, cost_nano INTEGER,
    number INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT 'first', cache_write_tokens INTEGER,
    cache_write_1h_tokens INTEGER, cached_audio_tokens INTEGER, audio_input_tokens INTEGER, audio_output_tokens INTEGER,
    image_input_tokens INTEGER, image_output_tokens INTEGER, CHECK ((closed IS NULL) = (ending IS NULL))
) WITHOUT ROWID;
INSERT OR IGNORE INTO labels (line, {_LABELS}) SELECT json_array({_LABELS}), {_LABELS} FROM attempts;
INSERT OR IGNORE INTO endings (line, {_ENDING}) SELECT json_array({_ENDING}), {_ENDING} FROM attempts WHERE closed IS NOT NULL;
INSERT INTO ledger (id, request_id, labels, opened, ending, number, reason, {_FIGURES})
    SELECT id, request_id, (SELECT n FROM labels WHERE line = json_array({_of("attempts", _LABELS)})), opened,
    CASE WHEN closed IS NOT NULL THEN (SELECT n FROM endings WHERE line = json_array({_of("attempts", _ENDING)})) END,
    number, reason, {_FIGURES} FROM attempts;
DROP TABLE attempts;
CREATE INDEX ledger_opened ON ledger (opened);
CREATE INDEX ledger_open ON ledger (id) WHERE closed IS NULL;
CREATE VIEW attempts AS SELECT id, request_id, number, reason, opened, {_LABELS}, {_ENDING}, {_FIGURES}
    FROM ledger LEFT JOIN labels ON labels.n = ledger.labels LEFT JOIN endings ON endings.n = ledger.ending
"""

_STEPS: Final[dict[int, str]] = {
    1: _TABLES,
    2: _CLASSES,
    3: _ACCOUNTS,
    4: "ALTER TABLE keys ADD COLUMN maker TEXT",
    5: "ALTER TABLE attempts ADD COLUMN reserved_nano INTEGER",
    6: _LEDGER,
}
"""What came with each version."""


def bring_up(connection: sqlite3.Connection, path: Path) -> None:
    """Make or update the tables; called inside a transaction. Raises ConfigError where a newer version made them."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise ConfigError(
            [
                f"{path} was written by a newer clawproxy (schema {version}; this one knows {VERSION}). "
                "Run that version, or use another state_dir."
            ]
        )
    if version < VERSION:
        for step in range(version + 1, VERSION + 1):
            for statement in _STEPS[step].split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
