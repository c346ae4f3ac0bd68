"""The tokenizer: byte-level BPE of our own, with the chat template.

The template lower-cases what users type: people write "BATMAN", "batman" and "Batman" for the same, and a small model
need not learn each of them. Text between the markers is encoded as plain text, so a user who types `<|im_end|>` ends
nothing.
"""

from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus.book import Book
from training.corpus.writer import conversations

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PAD_ID, START_ID, END_ID = 0, 1, 2
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'user' %}{{ message['content'] | lower }}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SAMPLE = 30_000


def train_tokenizer(book: Book, size: int, seed: int) -> Tokenizer:
    """Learn a vocabulary of so many tokens from a sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    talks = islice(conversations(book, seed), _SAMPLE)
    tokenizer.train_from_iterator((f"{m['role']}\n{text_of(m)}" for talk in talks for m in talk), trainer)
    return tokenizer


def load_tokenizer(path: Path, dropout: float | None = None) -> Tokenizer:
    """Read a tokenizer that takes markers in text as plain text, with BPE dropout if asked for."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    tokenizer.model.dropout = dropout
    return tokenizer


def text_of(message: dict[str, str]) -> str:
    """What the template shows of a message."""
    return message["content"].lower() if message["role"] == "user" else message["content"]


def encode_talk(messages: list[dict[str, str]], plain: Tokenizer, torn: Tokenizer) -> tuple[list[int], list[bool]]:
    """Encode a conversation: token ids, and for each whether the model has to learn it.

    Replies are encoded by `plain`, what users type by `torn`.
    """
    ids: list[int] = []
    learn: list[bool] = []
    for message in messages:
        is_reply = message["role"] == "assistant"
        head = [START_ID, *plain.encode(f"{message['role']}\n").ids]
        body = (plain if is_reply else torn).encode(text_of(message)).ids
        newline = plain.encode("\n").ids
        ids += [*head, *body, END_ID, *newline]
        learn += [False] * len(head) + [is_reply] * (len(body) + 1) + [False] * len(newline)
    return ids, learn
