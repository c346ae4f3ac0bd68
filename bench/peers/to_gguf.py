"""Converts a model with a tokenizer of our own to GGUF: `python -m bench.peers.to_gguf LLAMA_CPP MODEL FILE`.

llama.cpp's converter knows pre-tokenizers by a fingerprint of well-known models. Ours splits text as GPT-2's does
(tokenizers' `ByteLevel`), and this says so in its place.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs llama.cpp's own converter on the model."""
    source, model, target = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
    sys.path[:0] = [str(source), str(source / "gguf-py"), str(source.parent / "python")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda _self, _tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", target, "--outtype", "q8_0"]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
