"""Tiny decoder-only chat models: random weights, real architectures, a real tokenizer trained here and now."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 512
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
"""Of the models with heads that share keys."""
CORPUS = [
    "The detective closed the case file and looked at the rain. Who drew this panel, and why is the cape red?",
    'A villain never explains the plan twice. The hero answers: "not today", and costs the city $12.50 in glass.',
    "Que dit le héros ? Il dit bonjour, 你好, こんにちは, and sends 🦸🏽‍♀️ and 🦹.",
    "def fly(speed: int) -> str:\n    return f'{speed} km/h'\n",
]


def train_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in ChatML: ids 0 to 2 are the padding and the two control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=CONTEXT
    )
    fast.chat_template = CHATML
    return fast


def build_llama(folder: Path, **generation: object) -> Path:
    """Llama's shape with grouped-query attention: heads share keys."""
    config = LlamaConfig(**SIZES)
    return _save(folder, LlamaForCausalLM, config, generation)


def build_qwen2(folder: Path, **generation: object) -> Path:
    """Qwen2's shape: biased projections, tied embeddings."""
    config = Qwen2Config(**SIZES, tie_word_embeddings=True)
    return _save(folder, Qwen2ForCausalLM, config, generation)


def build_gpt2(folder: Path, **generation: object) -> Path:
    """GPT-2's shape: learned positions, every head with its own keys, tied embeddings."""
    config = GPT2Config(
        vocab_size=320, n_embd=48, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=0, eos_token_id=2
    )
    return _save(folder, GPT2LMHeadModel, config, generation)


def build_phi3(folder: Path, **generation: object) -> Path:
    """Phi-3's shape, and as its makers publish it: a config that also names code of theirs. Here that code raises."""
    config = Phi3Config(**SIZES, bos_token_id=0, eos_token_id=2, pad_token_id=0)
    _save(folder, Phi3ForCausalLM, config, generation)
    content = json.loads((folder / "config.json").read_text("utf-8"))
    own = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(content | {"auto_map": own}), "utf-8")
    for name in ("configuration_phi3.py", "modeling_phi3.py"):
        (folder / name).write_text("raise RuntimeError('this code is never run')\n", "utf-8")
    return folder


def _save(folder: Path, kind: type[PreTrainedModel], config: object, generation: dict[str, object]) -> Path:
    """Writes the model; weights are wide enough that greedy answers differ between prompts and do not loop at once."""
    torch.manual_seed(7)
    model = kind(config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    model.generation_config = GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **generation})
    model.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder
