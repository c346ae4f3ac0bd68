"""transformers' continuous batching, for decoder-only models that no other engine serves."""

from parley.engine.runners.transformers.runner import load

__all__ = ["load"]
