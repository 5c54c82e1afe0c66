"""Configuration: `schema` holds the keys and their defaults, `load` reads and checks, `units` and `secretrefs` parse values."""

from clawproxy.config.schema import (
    Config,
    KeyConfig,
    LimitsConfig,
    ModelConfig,
    PipelineConfig,
    PoolConfig,
    ProviderConfig,
    RouteConfig,
    SecretRef,
    ServerConfig,
    TLSConfig,
)

__all__ = [
    "Config",
    "KeyConfig",
    "LimitsConfig",
    "ModelConfig",
    "PipelineConfig",
    "PoolConfig",
    "ProviderConfig",
    "RouteConfig",
    "SecretRef",
    "ServerConfig",
    "TLSConfig",
]
