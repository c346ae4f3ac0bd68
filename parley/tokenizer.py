"""The tokenizer of a model folder: text to token ids and back, one piece at a time.

It lies below both `prompt` and `engine`, which need the same tokenizer in two processes. Folders with a
`tokenizer.json` load without torch.
"""

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parley.contract.chat import Message

_HELD_BACK = 12
"""Characters that `clean_up_tokenization` may still change: its longest pattern, with room for two in a row."""


class Tokenizer:
    """A loaded tokenizer. `hf` is transformers' own object."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._controls = sorted(_controls(hf), key=len, reverse=True)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Loads from local files only; raises `OSError` or `ValueError` from transformers when they are unusable."""
        if (folder / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast as Loader
        else:
            from transformers import AutoTokenizer as Loader
        return cls(Loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False))

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

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text in which nothing that a user wrote can become a control token."""
        pieces = self._split_controls(text)
        ids = [token for piece in pieces for token in self._ids(piece)] if len(pieces) > 1 else self._ids(text)
        return self._with_special_tokens(ids) if add_special_tokens else ids

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the assistant's turn.

        Raises:
            jinja2.TemplateError: when the template itself refuses the conversation.
        """
        mark = _mark()
        rendered: str = self._hf.apply_chat_template(
            [{"role": role, "content": self._broken(content, mark)} for role, content in messages],
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
        if clean_up or not self._hf.is_fast:
            return WholeText(self, clean_up)
        return StreamText(self._hf.backend_tokenizer)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._hf.encode(text, add_special_tokens=False)
        return ids

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        """What the tokenizer puts around a text: its template, applied to ids that are ready."""
        around: list[int] = self._hf.encode("", add_special_tokens=True)
        eos = self.eos_token_id
        cut = around.index(eos) if eos in around else len(around)
        return [*around[:cut], *ids, *around[cut:]]

    def _split_controls(self, text: str) -> list[str]:
        mark = _mark()
        return self._broken(text, mark).split(mark)

    def _broken(self, text: str, mark: str) -> str:
        """The text with `mark` inside each control token that it spells, so that no piece spells one.

        In any case, since a template may lower what users type.
        """
        lowered = text.lower()
        for control in self._controls:
            if len(control) > 1 and control.lower() in lowered:
                spelt = re.compile(re.escape(control), re.IGNORECASE)
                text = spelt.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        return text


class StreamText:
    """Detokenizer on tokenizers' own `DecodeStream`: cost per token does not grow with the answer."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = _stream_after([])
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
        self._held = []
        return str(text)

    def _restart(self) -> str:
        """The held tokens' text, from a new stream that goes on after them.

        The old one takes back what it gave: a byte-fallback decoder reads a run of byte tokens as a whole, and one that
        fits nowhere makes replacement characters of all. Here only those that were held become so.
        """
        self._stream = _stream_after(self._held)
        return str(self._backend.decode(self._held, skip_special_tokens=True))

    def flush(self) -> str:
        """Nothing: what `DecodeStream` still holds is a part of a character, which is dropped."""
        return ""

    def token_bytes(self, token: int) -> bytes | None:
        """One token's own text; None where it is a part of a character only."""
        return whole_characters(self._backend.decode([token], skip_special_tokens=False))


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


def _mark() -> str:
    """A string that no message holds: random, as any fixed one could be written by somebody."""
    return f"\ue000{secrets.randbits(128)}\ue000"


def whole_characters(text: str) -> bytes | None:
    """A decoded token in UTF-8; None where the decoder had to put a replacement character."""
    return None if "\ufffd" in text else text.encode()
