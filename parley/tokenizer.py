"""The tokenizer of a model folder: text to token ids and back, one piece at a time.

It lies below both `prompt` and `engine`, which need the same tokenizer in two processes. Folders with a
`tokenizer.json` load without torch.
"""

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parley.contract.chat import Message

_HELD_BACK = 12
"""Characters that `clean_up_tokenization` may still change: its longest pattern, with room for two in a row."""

_LONG_WORD = re.compile(r"(\S{200})(?=\S)")
"""What a tokenizer in Python takes the square of its length for."""
_MOST_WORDS = 10_000


class Tokenizer:
    """A loaded tokenizer. `hf` is transformers' own object."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._controls = sorted(_controls(hf), key=len, reverse=True)
        written = _written(hf)
        if isinstance(getattr(hf, "cache", None), dict):
            hf.cache = _Words(hf.cache)
        self._turn_marks = [control for control in self._controls if control not in written]
        self._normalizer = _normalizer(hf)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Loads from local files only; raises `OSError` or `ValueError` from transformers when they are unusable."""
        if (folder / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast as Loader
        else:
            from transformers import AutoTokenizer as Loader
        hf = Loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        apart = folder / "chat_template.json"  # which transformers reads for its processors only
        if hf.chat_template is None and apart.is_file():
            hf.chat_template = json.loads(apart.read_bytes())["chat_template"]
        return cls(hf)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end-of-sequence token."""
        eos: int | None = self._hf.eos_token_id
        return eos

    @property
    def model_max_length(self) -> int:
        """Most tokens that the tokenizer's own settings allow; a very large number when they say nothing."""
        return int(self._hf.model_max_length)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._hf.chat_template is not None

    @property
    def is_fast(self) -> bool:
        """Whether it is one of tokenizers', and not one of transformers' own in Python."""
        return bool(self._hf.is_fast)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which nothing that a user wrote can become a control token, and nothing around it."""
        mark = _mark()
        return [token for piece in self._broken(text, mark, self._controls).split(mark) for token in self._ids(piece)]

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the assistant's turn.

        What a model writes as text, such as the marks around its thoughts, stays whole in its own turns: templates look
        for it there.

        Raises:
            jinja2.TemplateError: when the template itself refuses the conversation.
        """
        mark = _mark()

        def guarded(role: str) -> list[str]:
            return self._turn_marks if role == "assistant" else self._controls

        rendered: str = self._hf.apply_chat_template(
            [{"role": role, "content": self._broken(content, mark, guarded(role))} for role, content in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        return [token for piece in rendered.split(mark) for token in self._ids(piece)]

    def decode(self, tokens: Sequence[int], clean_up: bool = False) -> str:
        """Text without special tokens; `clean_up` removes the spaces that older tokenizers put before punctuation."""
        text: str = self._hf.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self._hf.clean_up_tokenization(text) if clean_up else text

    def detokenizer(self, clean_up: bool = False) -> "StreamText | WholeText":
        """A fresh incremental detokenizer for one answer."""
        if clean_up or not self.is_fast:
            return WholeText(self, clean_up)
        return StreamText(self._hf.backend_tokenizer)

    def _ids(self, text: str) -> list[int]:
        if not self.is_fast:
            text = _LONG_WORD.sub(r"\1 ", text)
        ids: list[int] = self._hf.encode(text, add_special_tokens=False)
        return ids

    def _broken(self, text: str, mark: str, controls: Sequence[str]) -> str:
        """The text with `mark` inside each control token that it spells, so that no piece spells one.

        In any case, since a template may lower what users type; and as T5's tokenizer will read it, if that spells one.
        """
        if self._normalizer is not None:
            read = self._normalizer.normalize_str(text)
            if read != text and any(len(control) > 1 and control.lower() in read.lower() for control in controls):
                text = read
        lowered = text.lower()
        for control in controls:
            if len(control) > 1 and control.lower() in lowered:
                spelt = re.compile(re.escape(control), re.IGNORECASE)
                text = spelt.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        return text


class _Words(dict[str, str]):
    """The words that a tokenizer in Python has split, which would else keep every one that it has ever seen.

    None is ever taken out: a tokenizer asks whether a word is there and then reads it, and two threads may encode.
    """

    def __setitem__(self, word: str, pieces: str) -> None:
        if len(self) < _MOST_WORDS:
            super().__setitem__(word, pieces)


class StreamText:
    """Detokenizer on tokenizers' own `DecodeStream`: cost per token does not grow with the answer."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = _stream_after([])
        self._told: list[int] = []
        self._held: list[int] = []

    def push(self, tokens: list[int]) -> str:
        """Text that is final after these tokens; may be empty."""
        return "".join(map(self._step, tokens))

    def _step(self, token: int) -> str:
        self._held.append(token)
        try:
            text = self._stream.step(self._backend, token)
        except Exception:  # noqa: BLE001 - tokenizers raises no class of its own
            text = self._restart()
        if text is None:
            return ""
        self._told, self._held = self._held, []
        return str(text)

    def _restart(self) -> str:
        """The held tokens' text, from a new stream that goes on after them.

        The old one takes back what it gave: a byte-fallback decoder reads a run of byte tokens as a whole, and one that
        fits nowhere makes replacement characters of all. Here only those that were held become so.
        """
        self._stream = _stream_after(self._held)
        return self._text(self._held)

    def flush(self) -> str:
        """What is whole of the text that `DecodeStream` holds, such as the space before a part of a character.

        It is read after the tokens whose text came last: the first token of a text may lose its space.
        """
        return self._text(self._told + self._held)[len(self._text(self._told)) :].rstrip("\ufffd")

    def _text(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes | None:
        """One token's own text, as after another one; None where it is a part of a character only."""
        once, twice = (self._backend.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
        return whole_characters(twice[len(once) :])


def _stream_after(tokens: list[int]) -> Any:
    """A `DecodeStream` that goes on after these tokens, whose text is out."""
    from tokenizers.decoders import DecodeStream

    return DecodeStream(ids=tokens, skip_special_tokens=True)


class WholeText:
    """Detokenizer that decodes the whole answer again: for tokenizers without a stream, and for clean-up rules."""

    def __init__(self, tokenizer: Tokenizer, clean_up: bool) -> None:
        self._tokenizer = tokenizer
        self._clean_up = clean_up
        self._tokens: list[int] = []
        self._sent = 0

    def push(self, tokens: list[int]) -> str:
        """Text that is final after these tokens; may be empty."""
        self._tokens += tokens
        return self._up_to(_HELD_BACK)

    def flush(self) -> str:
        """What was held back, once the answer has ended."""
        return self._up_to(0)

    def token_bytes(self, token: int) -> bytes | None:
        """One token's own text; None where it is a part of a character only."""
        return whole_characters(self._tokenizer.decode([token]))

    def _up_to(self, held_back: int) -> str:
        text = self._tokenizer.decode(self._tokens, self._clean_up).rstrip("\ufffd")
        if not self._tokenizer.is_fast:
            text = text.removesuffix("@@")  # BlenderbotSmall's sign that a word goes on
        piece = text[self._sent : max(len(text) - held_back, self._sent)]
        self._sent += len(piece)
        return piece


_BARRED = re.compile(r"<[|\uff5c].*[|\uff5c]>")
"""How markers of turns are spelt that a template may put together from the name of a role; some have wide bars."""


def _controls(hf: Any) -> set[str]:
    """The tokens that a user must not be able to write: special ones, and what the template marks its turns with.

    Other added tokens are ordinary text to the model, such as runs of spaces, line breaks and HTML tags.
    """
    added = hf.added_tokens_decoder.values()
    template = hf.chat_template or ""
    source = "\n".join(template.values()) if isinstance(template, dict) else template
    marks = {token.content for token in added if token.content in source or _BARRED.fullmatch(token.content)}
    controls = marks | {token.content for token in added if token.special} | set(hf.all_special_tokens)
    return {control for control in controls if not control.isspace()}


def _written(hf: Any) -> set[str]:
    """Of the added tokens those that a model writes as text, such as the marks around its thoughts."""
    plain = {token.content for token in hf.added_tokens_decoder.values() if not token.special}
    return {content for content in plain if not _BARRED.fullmatch(content)} - set(hf.all_special_tokens)


def _normalizer(hf: Any) -> Any:
    """What changes a text before a Unigram model (T5's) reads it, which finds control tokens in the result; or None."""
    backend = getattr(hf, "backend_tokenizer", None)
    return backend.normalizer if backend is not None and type(backend.model).__name__ == "Unigram" else None


def _mark() -> str:
    """A string that no message holds: random, as any fixed one could be written by somebody."""
    return f"\ue000{secrets.randbits(128)}\ue000"


def whole_characters(text: str) -> bytes | None:
    """A decoded token in UTF-8; None where the decoder had to put a replacement character."""
    return None if "\ufffd" in text else text.encode()
