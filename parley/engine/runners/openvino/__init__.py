"""Decoder-only models on a CPU: OpenVINO GenAI's continuous batching.

Needs an export: the embedded model ships with one beside its weights, in `openvino/`; `parley convert` makes one for
another model. Neither torch nor transformers is imported.
"""

from parley.engine.runners.openvino.runner import load

__all__ = ["load"]
