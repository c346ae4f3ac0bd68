"""Tiny encoder-decoder models: random weights, real architectures, real tokenizers trained here and now."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

POSITIONS = 64
VOCABULARY = 320
_END_FACTOR = 2.5
"""Makes the end token likelier than another, so that answers of random weights also end by themselves."""

CORPUS = [
    "I like comic books. Do you like comic books too? I have never read one, but I have seen the movies.",
    "Who is your favourite hero? Mine is the one who can fly. I wish I could fly, it would be so cool!",
    "That sounds like a lot of fun. What do you do for a living? I work as a librarian in a small town.",
    'The villain escapes on page nine, and the hero (who is late) says: "Not again." What happens next?',
]
BLENDERBOT_GENERATION: dict[str, Any] = {
    "num_beams": 10,
    "length_penalty": 0.65,
    "min_length": 20,
    "max_length": 60,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "forced_eos_token_id": 2,
}
"""What facebook/blenderbot-400M-distill asks for."""


def build_blenderbot(folder: Path, **generation: Any) -> Path:
    """Pre-norm, a final norm, learned positions; Blenderbot's own generation config unless told otherwise."""
    config = BlenderbotConfig(
        **_bart_sizes(), bos_token_id=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1, scale_embedding=True
    )
    tokens = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    asked = {**tokens, **(generation or BLENDERBOT_GENERATION)}
    return _save(folder, BlenderbotForConditionalGeneration(config), asked, _bpe("<pad>", "<s>", "</s>"))


def build_blenderbot_small(folder: Path, **generation: Any) -> Path:
    """Post-norm, the norm before the positions are added."""
    config = BlenderbotSmallConfig(
        **_bart_sizes(), bos_token_id=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1, scale_embedding=True
    )
    tokens = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = BlenderbotSmallForConditionalGeneration(config)
    return _save(folder, model, {**tokens, **generation}, _bpe("<pad>", "<s>", "</s>"))


def build_bart(folder: Path, **generation: Any) -> Path:
    """Post-norm, positions with an offset, the end token as start token and a forced first token."""
    config = BartConfig(**_bart_sizes(), bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return _save(folder, BartForConditionalGeneration(config), {**tokens, **generation}, _bpe("<s>", "<pad>", "</s>"))


def build_t5(folder: Path, **generation: Any) -> Path:
    """Relative positions, unscaled attention of another size than the model, tied and scaled output."""
    return _t5(folder, generation, feed_forward_proj="relu", tie_word_embeddings=True)


def build_flan_t5(folder: Path, **generation: Any) -> Path:
    """T5 with a gated feed-forward and an output layer of its own, which its config calls untied."""
    path = _t5(folder, generation, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return path


BUILDERS = {
    "blenderbot": build_blenderbot,
    "blenderbot-small": build_blenderbot_small,
    "bart": build_bart,
    "t5": build_t5,
    "flan-t5": build_flan_t5,
}


def prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    """Token ids of conversations: random pieces of text's length, ended by the end token."""
    chance = random.Random(seed)
    return [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, longest))] + [2] for _ in range(count)]


def _bart_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": POSITIONS,
    }


def _t5(folder: Path, generation: dict[str, Any], **kind: Any) -> Path:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        **kind,
    )
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return _save(folder, model, {**tokens, **generation}, _unigram())


def _bpe(*special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that ends every text with the end token, as Blenderbot's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=POSITIONS
    )


def _unigram() -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's word marks."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=POSITIONS
    )


def _save(folder: Path, model: PreTrainedModel, generation: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Path:
    """Writes the model; its weights are wide enough that answers differ between prompts and end at many lengths."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
        model.get_output_embeddings().weight[generation["eos_token_id"]] *= _END_FACTOR
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
