"""The public keys of one issuer: where they are, when they are fetched, how long they are believed.

Rule 1: of a key set at most `MOST_BYTES` and `MOST_KEYS` are taken, and of it only public RSA (2048 bits and more), EC and OKP
        keys that are for signing. One key that can not be read takes no other with it.
Rule 2: the last good set stays in use, at most `keep` seconds, whatever a new fetch brings.
Rule 3: at most one fetch at a time, and none within `PAUSE` seconds of the one before, however many unknown key ids come. It is
        the service's, not the request's that caused it: who hangs up ends no fetch, or one client could keep all others out.
Rule 4: only configured places are asked. What a discovery document names is taken for the same issuer alone, over https; its
        words lead to no port of this machine.
Rule 5: requests wait for a fetch, but not long: where keys are held that fit, those of a slow issuer are used meanwhile.
"""

from __future__ import annotations

import base64
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from attrs import frozen

from clawproxy.fetch import FetchError, fetch, problem_with
from clawproxy_auth.issuers import ALGORITHMS, IssuerSettings, Unverified

log = logging.getLogger("clawproxy.auth")

MOST_BYTES: Final = 256 * 1024
MOST_KEYS: Final = 100
PAUSE: Final = 60.0
WITH_KEYS, WITHOUT = 1.0, 4.0
"""Seconds that a request waits for a fetch, where keys are held that fit its token, and where not. Less than what the gateway
gives a plugin for its verdict."""
_SHORTEST_RSA: Final = 2048
_DISCOVERY: Final = "/.well-known/openid-configuration"


@frozen(slots=True)
class PublicKey:
    id: str | None
    kind: str
    algorithm: str | None
    """The only one it is for, where it says so."""
    key: Any = None


class KeySet:
    """One issuer's. Lives in `app.shared`, so that a reload forgets nothing."""

    def __init__(
        self, name: str, settings: IssuerSettings, count: Callable[..., None], nursery: trio.Nursery | None = None
    ) -> None:
        """Args: nursery: the service's; without it each fetch is the request's that caused it."""
        self.name = name
        self.settings = settings
        self._count = count
        self._nursery = nursery
        self._keys: Sequence[PublicKey] = ()
        self._fetched = -float("inf")
        """When the keys that are held came."""
        self._tried = -float("inf")
        self._over: trio.Event | None = None
        """Set at the end of the fetch that is under way."""

    async def verified(self, written: Unverified) -> bool:
        """Whether one of the issuer's keys signed it. Without keys nothing is believed."""
        if written.algorithm not in self.settings.algorithms:
            return False
        old = trio.current_time() - self._fetched > self.settings.refresh
        found = self._matching(written)
        if old or (not found and written.key_id is not None):
            with trio.move_on_after(WITH_KEYS if found else WITHOUT):
                await self._refresh()
            found = self._matching(written)
        return any(_signed(written, each) for each in found)

    def _matching(self, written: Unverified) -> list[PublicKey]:
        if trio.current_time() - self._fetched > self.settings.keep:
            return []
        kind = ALGORITHMS[written.algorithm]
        fit = [each for each in self._keys if each.kind == kind and each.algorithm in (None, written.algorithm)]
        if written.key_id is not None:
            return [each for each in fit if each.id == written.key_id]
        return fit if len(fit) == 1 else []

    async def _refresh(self) -> None:
        """Until the fetch that is under way, or due, is over."""
        if self._over is None:
            now = trio.current_time()
            if now - self._tried < PAUSE:
                return
            self._tried, self._over = now, trio.Event()
            if self._nursery is None:
                await self._take(self._over)
                return
            self._nursery.start_soon(self._take, self._over)
        await self._over.wait()

    async def _take(self, over: trio.Event) -> None:
        """One fetch. Raises nothing: what could not be had is logged and counted."""
        try:
            keys = read_keys(await self._fetch())
        except FetchError as error:
            self._count("clawproxy_jwks_fetches_total", result="failed")
            log.warning("auth: the keys of issuer %s could not be fetched: %s", self.name, error)
        except Exception:  # a defect: as harmless as an issuer that is down
            self._count("clawproxy_jwks_fetches_total", result="failed")
            log.exception("auth: fetching the keys of issuer %s crashed", self.name)
        else:
            self._count("clawproxy_jwks_fetches_total", result="ok")
            self._keys, self._fetched = keys, trio.current_time()
        finally:
            self._over = None
            over.set()

    async def _fetch(self) -> bytes:
        place, trusted = self.settings.jwks, self.settings.ca_file
        if place is not None and place.startswith("file:"):
            return await trio.to_thread.run_sync(_read, Path(place.removeprefix("file:")))
        if place is None:
            place = await self._discovered(trusted)
        return await _got(place, trusted)

    async def _discovered(self, ca_file: Path | None) -> str:
        """OpenID Connect Discovery 1.0, 4.3: the document must be the issuer's own."""
        body = await _got(self.settings.issuer.rstrip("/") + _DISCOVERY, ca_file)
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise FetchError("its discovery document is not JSON") from None
        place = document.get("jwks_uri")
        if document.get("issuer") != self.settings.issuer:
            raise FetchError("its discovery document is another issuer's")
        if not isinstance(place, str) or problem_with(place) is not None:
            raise FetchError("its discovery document names no usable jwks_uri")
        if place.startswith("http:") and not self.settings.issuer.startswith("http:"):
            raise FetchError("its discovery document names a jwks_uri that is not https")
        return place


async def _got(url: str, ca_file: Path | None) -> bytes:
    answer = await fetch(url, headers=[("accept", "application/json")], limit=MOST_BYTES, ca_file=ca_file)
    if answer.status != 200:
        raise FetchError(f"status {answer.status}")
    return answer.body


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise FetchError(f"the file can not be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise FetchError(f"the file is larger than {MOST_BYTES} bytes")
    return data


def read_keys(body: bytes) -> Sequence[PublicKey]:
    """The usable keys of a JWK set (RFC 7517, 5). Raises FetchError where it is none, or has none."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, RecursionError):
        raise FetchError("it is no JSON object") from None
    if not isinstance(found, list):
        raise FetchError("it is no key set")
    if len(found) > MOST_KEYS:
        raise FetchError(f"it has more than {MOST_KEYS} keys")
    keys = [key for each in found if isinstance(each, dict) and (key := _public(each)) is not None]
    if not keys:
        raise FetchError("it has no usable key")
    return keys


def _public(parts: dict[str, Any]) -> PublicKey | None:
    from joserfc import jwk
    from joserfc.errors import JoseError

    kind, key_id, algorithm = parts.get("kty"), parts.get("kid"), parts.get("alg")
    if kind not in ("RSA", "EC", "OKP") or parts.get("use", "sig") != "sig" or "d" in parts:
        return None
    if not isinstance(key_id, str | None) or (algorithm is not None and ALGORITHMS.get(str(algorithm)) != kind):
        return None
    if kind == "RSA" and not _is_long(parts.get("n")):
        return None
    try:
        key = jwk.import_key({name: parts[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in parts})
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return PublicKey(key_id, kind, algorithm, key)


def _is_long(modulus: object) -> bool:
    """Of base64url (RFC 7518, 6.3.1.1)."""
    try:
        data = base64.urlsafe_b64decode(modulus + "=" * (-len(modulus) % 4)) if isinstance(modulus, str) else b""
    except ValueError:
        return False
    return int.from_bytes(data).bit_length() >= _SHORTEST_RSA


def _signed(written: Unverified, public: PublicKey) -> bool:
    from joserfc import jws
    from joserfc.errors import JoseError, SecurityWarning

    try:
        with warnings.catch_warnings():  # `EdDSA` is an old name for what issuers still use (RFC 9864)
            warnings.simplefilter("ignore", SecurityWarning)
            jws.deserialize_compact(written.token, public.key, algorithms=[written.algorithm])
    except (JoseError, ValueError, TypeError):
        return False
    return True
