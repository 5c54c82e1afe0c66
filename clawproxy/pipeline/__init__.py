"""The chain of hooks: `plugins` finds and validates them (pluggy), `compile` turns them into tuples of callables in the
operator's order, `relay` runs the taps over an answer. Sees only vocabulary, hook specifications and configuration."""

from clawproxy.pipeline.compile import Pipeline, compile_pipeline
from clawproxy.pipeline.plugins import Plugins, installed
from clawproxy.pipeline.relay import Relay

__all__ = ["Pipeline", "Plugins", "Relay", "compile_pipeline", "installed"]
