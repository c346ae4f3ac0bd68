"""Encoder-decoder models on torch, by a step loop of our own: Blenderbot, BlenderbotSmall, BART, T5 and Flan-T5."""

import os

# torch's threads wait for one another by spinning, for so long that answers halt where other programs need the cores;
# where they sleep at once, waking them costs up to half of the speed. So they spin briefly: docs/decisions.md has the
# figures. OpenMP reads this once, when torch is loaded: hence here, before it is.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from parley.engine.runners.seq2seq.runner import load

__all__ = ["load"]
