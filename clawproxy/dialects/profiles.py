"""What hosts that speak like OpenAI do differently: one row each, as data.

Rule 1: a host gets its row by `[providers.NAME] profile`, else by the host of its `base_url`, else it is `default`, which takes
        everything as OpenAI's documentation has it and keeps the client's own words.
Rule 2: a row says only what was seen to matter: a parameter the host answers with an error, one it ignores though it changes
        the answer, a name it has for something else. What a host may refuse by itself, in its own words, is not repeated here.
Rule 3: what is left out silently changes nothing an answer says, and the client is told; what would is refused by name.

Sources: each host's own reference and SDK (openai, groq, mistralai), November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from clawproxy.config import ProviderConfig
from clawproxy.errors import ConfigError

REFUSED: Final = "refused"
DROPPED: Final = "dropped"
_NONE: Mapping[str, str] = MappingProxyType({})


@frozen
class Profile:
    name: str
    hosts: tuple[str, ...] = ()
    """Patterns of `base_url`'s host, or of its `host:port`."""
    auth_header: str = "authorization"
    paths: Literal["openai", "azure"] = "openai"
    """`azure`: the deployment in the path where there is an `api_version`, else below `/openai/v1`."""
    max_tokens: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    """The names it takes for this, the one to use where the client said neither first."""
    usage: bool = True
    """It understands `stream_options.include_usage`; others report usage unasked."""
    developer: bool = True
    """It knows the role `developer`; for others it is `system`."""
    reasoning: str | None = "reasoning_content"
    """Its name for a message's reasoning; None: it has no use for it. (`default` is sent the client's own name.)"""
    top_k: bool = False
    """It takes `top_k` from requests of other formats."""
    json_schema: bool = True
    """It holds answers to a schema, and not only to JSON."""
    strict: bool = True
    """It holds a tool's arguments to their schema."""
    embeddings: bool = True
    fields: Mapping[str, str] = _NONE
    """What becomes of a field of the body: another name, `DROPPED` or `REFUSED`."""
    picky: bool = field(init=False)
    """Bodies must be looked through for it."""

    @picky.default
    def _is_picky(self) -> bool:
        return bool(self.fields) or not (self.developer and self.json_schema and self.strict)


DEFAULT: Final = Profile("default")
_NEWER = ("max_completion_tokens", "max_tokens")
_OPENAI = Profile(
    "openai",
    ("api.openai.com", "*.api.openai.com"),
    max_tokens=_NEWER,  # its reasoning models refuse the older name
    reasoning=None,
)
_AZURE = evolve(
    _OPENAI,
    name="azure",
    hosts=("*.openai.azure.com", "*.cognitiveservices.azure.com"),
    auth_header="api-key",
    paths="azure",
)
# Their servers refuse fields they do not know.
_OF_OPENAI_ALONE = dict.fromkeys(
    ("store", "service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"), DROPPED
)

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        DEFAULT,
        _OPENAI,
        _AZURE,
        evolve(_AZURE, name="azure_entra", hosts=(), auth_header="authorization"),
        Profile("xroute", ("api.xroute.ai",)),
        Profile(
            "vllm",
            developer=False,  # most chat templates have no such role
            reasoning="reasoning",
            top_k=True,
            strict=False,
        ),
        Profile("openrouter", ("openrouter.ai",), reasoning="reasoning", top_k=True),
        Profile(
            "groq",
            ("api.groq.com",),
            max_tokens=_NEWER,
            reasoning="reasoning",  # 400 for the other
            embeddings=False,
            fields={
                **dict.fromkeys(("logprobs", "top_logprobs", "logit_bias"), REFUSED),
                **{name: fate for name, fate in _OF_OPENAI_ALONE.items() if name != "service_tier"},
            },
        ),
        Profile(
            "mistral",
            ("api.mistral.ai", "*.mistral.ai"),
            max_tokens=("max_tokens",),
            usage=False,
            developer=False,
            reasoning=None,
            top_k=True,
            fields={
                "seed": "random_seed",
                "dimensions": "output_dimension",
                "logit_bias": REFUSED,
                "user": DROPPED,
                **_OF_OPENAI_ALONE,
            },
        ),
        Profile(
            "deepseek",
            ("api.deepseek.com",),
            max_tokens=("max_tokens",),
            developer=False,
            reasoning="reasoning_content",  # which must come back where tools were called
            json_schema=False,
            strict=False,
            embeddings=False,
        ),
        Profile("bedrock", ("bedrock-mantle.*.api.aws", "bedrock-runtime.*.amazonaws.com"), max_tokens=_NEWER, reasoning=None),
        Profile(
            "ollama_compat",
            ("*:11434", "ollama.com"),
            max_tokens=("max_tokens",),  # the newer name is ignored
            developer=False,
            reasoning="reasoning",
            strict=False,
            fields={"logit_bias": REFUSED},
        ),
        Profile("openclaw", ("*:18789",)),
    )
}


def profile_for(provider: ProviderConfig, default: Profile = DEFAULT) -> Profile:
    """The provider's row; `default` where neither its `profile` nor its `base_url` tells.

    Raises:
        ConfigError: there is no such profile.
    """
    if provider.profile is not None:
        found = PROFILES.get(provider.profile)
        if found is None:
            raise ConfigError([f"profile: it is not known; known are {', '.join(PROFILES)}."])
        return found
    if default is not DEFAULT or provider.base_url is None:
        return default
    try:
        parts = urlsplit(provider.base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # who checks addresses says so
        return default
    for profile in PROFILES.values():
        for pattern in profile.hosts:
            if fnmatchcase(f"{host}:{port}" if ":" in pattern else host, pattern):
                return profile
    return default
