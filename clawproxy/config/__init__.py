"""Configuration: `schema` holds the keys and their defaults, `load` reads and checks, `units` and `secretrefs` parse values."""

from clawproxy.config.schema import (
    KIB,
    MIB,
    Config,
    Duration,
    KeyConfig,
    LimitsConfig,
    LogConfig,
    ModelConfig,
    PipelineConfig,
    PoolConfig,
    ProviderConfig,
    RouteConfig,
    SecretRef,
    ServerConfig,
    Size,
    TLSConfig,
)

__all__ = [
    "KIB",
    "MIB",
    "Config",
    "Duration",
    "KeyConfig",
    "LimitsConfig",
    "LogConfig",
    "ModelConfig",
    "PipelineConfig",
    "PoolConfig",
    "ProviderConfig",
    "RouteConfig",
    "SecretRef",
    "ServerConfig",
    "Size",
    "TLSConfig",
]
