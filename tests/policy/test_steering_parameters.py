"""No body steers the gateway's own connection (SS-01), and no name of a model leaves its place in a path (I-01)."""

from __future__ import annotations

import json

import pytest

from clawproxy.dialects import CLIENT, PATHS, PROVIDER
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import Operation, Route
from clawproxy.testing.factories import make_request
from tests.policy.prompts import EMBEDDINGS, REQUESTS

STEERING = ("api_base", "api_key", "base_url", "custom_llm_provider", "extra_headers", "extra_body", "proxy", "timeout")
NAMES = ("../../admin", "a?key=x", "a#b", "a%2f..", "a\r\nX: y", "\u2028", "é", "a b", "a/b:generate", "..", "\0")
OPERATIONS: tuple[Operation, ...] = ("chat", "embeddings", "count_tokens")


@pytest.mark.parametrize("name", STEERING)
def test_what_would_steer_the_gateways_connection_is_refused_in_every_format(name: str) -> None:
    for path, body in [*REQUESTS.values(), *EMBEDDINGS.values(), ("/api/generate", {"prompt": "a"})]:
        at = path.replace("{model}", "m")
        document = {**body, name: "http://evil.test", **({} if "{model}" in path else {"model": "m"})}
        text = json.dumps(document).replace("{model}", "m").encode()
        with pytest.raises(ClawError) as caught:
            CLIENT[PATHS.get(at, "gemini")].decode_request(text, {}, Head("POST", at, at, "", ()))
        assert (caught.value.slug, caught.value.details.param) == ("unknown_parameter", name), at


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name_stays_one_segment_of_a_path(name: str) -> None:
    for provider, dialect in PROVIDER.items():
        for operation in OPERATIONS:
            try:
                path = dialect.encode_request(make_request("hi", operation=operation), Route(provider, name)).path
            except ClawError:
                continue
            plain = dialect.encode_request(make_request("hi", operation=operation), Route(provider, "m")).path
            assert path.isascii()
            assert not set(path) & set("#\r\n\0 "), path
            assert path.count("/") == plain.count("/"), path
            assert path.count("?") == plain.count("?"), path
