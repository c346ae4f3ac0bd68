"""Models of well-known shapes with random weights, built here: how fast they run does not depend on what they know.

Every answer has the length that was asked for: rows of the end token, and of all tokens that are no words, are zero in
the tied embedding, so that their logit is 0 and below that of the best of thousands of random others.
"""

import filecmp
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)

from bench import vocabulary
from parley.engine.model import POCKET

CONTEXT = 4096
ENCODER_CONTEXT = 128


@dataclass(frozen=True)
class Shape:
    """One architecture: transformers' config, and the generation config that goes with it."""

    model_type: str
    config: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder_decoder(self) -> bool:
        """Whether it has an encoder."""
        return self.model_type == "blenderbot"


_BLENDERBOT_400M = {
    "vocab_size": 8008,
    "d_model": 1280,
    "encoder_layers": 2,
    "decoder_layers": 12,
    "encoder_attention_heads": 32,
    "decoder_attention_heads": 32,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "max_position_embeddings": ENCODER_CONTEXT,
    "scale_embedding": True,
    "add_final_layer_norm": True,
    "normalize_before": True,
    "activation_function": "gelu",
}
_BLENDERBOT_RULES = {
    "num_beams": 10,
    "min_length": 20,
    "max_length": 60,
    "length_penalty": 0.65,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "forced_eos_token_id": 2,
}

SHAPES = {
    "S": Shape(
        "llama",
        {
            "vocab_size": 2048,
            "hidden_size": 256,
            "intermediate_size": 672,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "M": Shape(
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "L": Shape(
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "blenderbot": Shape("blenderbot", _BLENDERBOT_400M, _BLENDERBOT_RULES),
    "blenderbot-greedy": Shape("blenderbot", _BLENDERBOT_400M, {"num_beams": 1, "max_length": 60}),
}
"""S: 5 M parameters. M: SmolLM2-135M's shape. L: Qwen3-0.6B's. blenderbot: Blenderbot-400M's, rules included."""


def build(name: str, root: Path) -> Path:
    """The folder of a shape's model, built if it is not there yet; a copy of the embedded model for `pocket`."""
    folder, partial = root / name, root / f"{name}.partial"
    if folder.is_dir() and (name != "pocket" or _is_copy(folder)):
        return folder
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    if name == "pocket":
        shutil.copytree(POCKET, partial)
    else:
        _build(SHAPES[name], partial)
    return partial.rename(folder)


def _is_copy(folder: Path) -> bool:
    """Whether the embedded model and its export are still those that were copied."""
    names = ("model.safetensors", "openvino/openvino_model.xml", "openvino/openvino_model.bin")
    return all(filecmp.cmp(folder / name, POCKET / name, shallow=False) for name in names)


def _build(shape: Shape, folder: Path) -> None:
    context = ENCODER_CONTEXT if shape.encoder_decoder else CONTEXT
    tokenizer = vocabulary.train(shape.config["vocab_size"], context, chat=not shape.encoder_decoder)
    model = _random_model(shape, vocabulary.speakable(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, **_starts(shape), **shape.generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parameters(folder: Path) -> int:
    """Parameters of a built model, from the header of its safetensors file."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [torch.Size(tensor["shape"]).numel() for name, tensor in header.items() if name != "__metadata__"]
    return sum(sizes)


def _random_model(shape: Shape, words: list[int]) -> PreTrainedModel:
    torch.manual_seed(0)
    tokens = {"eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, **_starts(shape)}
    config = AutoConfig.for_model(shape.model_type, **shape.config, **tokens)
    kind = AutoModelForSeq2SeqLM if shape.encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config)
    mute = torch.ones(config.vocab_size, dtype=torch.bool)
    mute[words] = False
    with torch.no_grad():
        model.get_input_embeddings().weight[mute] = 0
    return model


def _starts(shape: Shape) -> dict[str, int]:
    return {"bos_token_id": 1, "decoder_start_token_id": 1} if shape.encoder_decoder else {}
