"""One module or package a model library; the only places that import torch, transformers or openvino.

Each module has `load(folder, placement, reason) -> Runner`, which raises `ModelError` with one line when the model does
not fit it.
"""
