"""A tokenizer for models with random weights: byte-level BPE as GPT-2's, with one token for every common word."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bench import lexicon

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train(size: int, context: int, chat: bool) -> PreTrainedTokenizerFast:
    """Trains one.

    Args:
        size: most tokens; small sizes have room for little more than the bytes and the common words.
        context: most tokens of a conversation.
        chat: whether it has a chat template (ChatML); without one, it ends a text with the end token, as
            Blenderbot's does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    common = (f" {word}" for word in lexicon.COMMON * 50)
    tokenizer.train_from_iterator([*common, " ".join(lexicon.rare(size))], trainer)
    if not chat:
        end = tokenizer.token_to_id(END)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, bos_token=START, model_max_length=context
    )
    fast.chat_template = CHATML if chat else None
    return fast


def speakable(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that are whole words or parts of words."""
    words = {index: token.removeprefix("Ġ") for token, index in tokenizer.get_vocab().items()}
    return [index for index, word in words.items() if word.isascii() and word.isalpha()]
