"""Encoder-decoder models on torch, by a step loop of our own: Blenderbot, BlenderbotSmall, BART, T5 and Flan-T5."""

import os

# torch's threads wait for one another by spinning, for so long that answers halt where other programs need the cores:
# with one of two taken, a token cost 25 ms and more, and costs 4 to 5 where they spin briefly and then sleep; where
# nobody disturbs, 1.3 ms both ways. OpenMP reads this once, when torch is loaded: hence here, before it is.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from parley.engine.runners.seq2seq.runner import load

__all__ = ["load"]
