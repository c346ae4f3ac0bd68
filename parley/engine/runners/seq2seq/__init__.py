"""Encoder-decoder models on torch, by a step loop of our own: Blenderbot, BlenderbotSmall, BART, T5 and Flan-T5."""

import os

# torch's threads wait by spinning, which takes the core that the API's process, or another thread of theirs, needs: on
# two shared cores a token took 4 to 6 ms with sleeping threads, 8 to more than 25 with spinning ones. OpenMP reads this
# once, when torch is loaded: hence here, before it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from parley.engine.runners.seq2seq.runner import load

__all__ = ["load"]
