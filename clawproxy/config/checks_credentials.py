"""The checks of a provider's credentials: where each is, that none is there twice, and that what fetches it can be run."""

from __future__ import annotations

import shlex
import shutil
from urllib.parse import urlsplit

from clawproxy.config.findings import Findings, check_file
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.locate import dotted
from clawproxy.config.schema import FETCHED, OAuthConfig, ProviderConfig, SecretRef

MOST_CREDENTIALS = 64
LEAST_REFRESH = 1.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def check_credentials(provider: ProviderConfig, path: KeyPath, found: Findings) -> None:
    places: list[tuple[KeyPath, SecretRef]] = [((*path, "api_key"), provider.api_key)] if provider.api_key is not None else []
    places += [((*path, "api_keys", index), ref) for index, ref in enumerate(provider.api_keys)]
    if len(places) > MOST_CREDENTIALS:
        found.wrong((*path, "api_keys"), f"come to {len(places)} credentials; {MOST_CREDENTIALS} are the most")
    seen: dict[object, KeyPath] = {}
    for where, ref in places:
        if ref.scheme == "":
            found.warn(where, 'is a secret in the file itself; write "env:NAME" or "file:PATH"')
        if ref in seen:
            found.wrong(where, f"is the same as {dotted(seen[ref])}; name each credential once")
        seen.setdefault(ref, where)
        problem = reference_problem(ref)
        if problem is not None:
            found.wrong(where, problem)
    if provider.oauth is not None:
        if places:
            found.wrong((*path, "oauth"), "stands beside api_key or api_keys; keep one of the two")
        check_oauth(provider.oauth, (*path, "oauth"), found)
    if provider.refresh is not None:
        if provider.refresh < LEAST_REFRESH:
            found.wrong((*path, "refresh"), 'is too short; write "1s" or more')
        if provider.oauth is None and not any(ref.scheme in FETCHED for _, ref in places):
            found.wrong((*path, "refresh"), "has no effect: it is for command:, vault: and aws: credentials and oauth; remove it")


def check_oauth(oauth: OAuthConfig, path: KeyPath, found: Findings) -> None:
    problem = _url_problem(oauth.token_url)
    if problem is not None:
        found.wrong((*path, "token_url"), problem)
    if not oauth.client_id:
        found.wrong((*path, "client_id"), "is empty; write what the authorization server knows the gateway by")
    if oauth.client_secret is None and oauth.refresh_token is None:
        found.wrong((*path, "client_secret"), "is missing; add it, or a refresh_token")
    for name, ref in (("client_secret", oauth.client_secret), ("refresh_token", oauth.refresh_token)):
        if ref is not None and ref.scheme == "":
            found.warn((*path, name), 'is a secret in the file itself; write "env:NAME" or "file:PATH"')
    if oauth.ca_file is not None:
        check_file(oauth.ca_file, (*path, "ca_file"), "a PEM file", found)


def _url_problem(url: str) -> str | None:
    """`fetch.problem_with` has the last word; this is for the file's own line."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.username is not None or parts.fragment or not url.isascii() or any(char <= " " for char in url):
        return "is no URL; write it like https://login.example/oauth2/token"
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        return "must begin with https:// (http:// only to this machine itself)"
    return None


def reference_problem(ref: SecretRef) -> str | None:
    """What is wrong with how a reference to something fetched is written. Its value is not repeated: an argument of a command may
    be a secret."""
    if ref.scheme == "command":
        try:
            words = command_words(ref.value)
        except ValueError as error:
            return f"is no command line ({error}); write the program and its arguments, as for a shell"
        if not words:
            return "names no program; write the program and its arguments"
        if shutil.which(words[0]) is None:
            return "names a program that is not there, or may not be run; write its whole path"
    elif ref.scheme in ("vault", "aws") and ref.value.count("#") > 1:
        return f"has two #; write {ref.scheme}:PATH#FIELD"
    elif ref.scheme == "vault" and (not all(ref.value.partition("#")) or ref.value.startswith("/")):
        return "names no field; write vault:PATH#FIELD, like vault:secret/data/openai#api_key"
    elif ref.scheme == "aws" and not ref.value.partition("#")[0]:
        return "names no secret; write aws:NAME, or aws:NAME#FIELD where the secret is JSON"
    return None


def command_words(value: str) -> list[str]:
    """The program and its arguments. No shell sees them. Raises ValueError."""
    return shlex.split(value)
