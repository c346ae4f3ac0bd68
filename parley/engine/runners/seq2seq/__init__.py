"""Encoder-decoder models on torch, by a step loop of our own: Blenderbot, BlenderbotSmall, BART, T5 and Flan-T5."""

from parley.engine.runners.seq2seq.runner import load

__all__ = ["load"]
