"""How the model's text is put on the page: its Markdown is rendered, and nothing else in it acts.

Only what is shown passes through here. What is stored, sent back and downloaded is the text as it came.
"""

import re
import textwrap
from collections.abc import Iterator

import blocks

# A picture in what we take for code and Markdown does not would be loaded. So a span ends with its line, and one that
# holds a picture is none. The bounds keep the time in proportion to the text, whatever a model repeats.
_SPAN = re.compile(r"(?<![`\\])(`{1,9})(?!`)(?:(?!!\[).)+?(?<!`)\1(?!`)")
_ACTIVE = re.compile(r"(?<!\\)(\\*)(\$|:(?=:{0,2}[a-zA-Z])|(?<=!)\[|\[(?=\^)|<(?=[a-zA-Z/!?]))")
_HEAD = re.compile(r"\A[\s\ufeff]+")
"""What Streamlit strips, and the byte order mark that its parser takes away."""


def shown(text: str) -> str:
    """Markdown that Streamlit shows as the text reads.

    Outside code, `$` would begin a formula, `:red[` a colour, `[^` a footnote, and `![` would load a picture from
    wherever the model says; a backslash makes them plain, and `<`, which would hide them. Single line ends are kept.
    """
    # Streamlit dedents and strips, which may make text of indented code: so that comes first.
    text = textwrap.dedent(text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(_parts(_HEAD.sub("", text))).strip()


def _parts(text: str) -> Iterator[str]:
    for line, code in blocks.lines(text):
        yield f"{line}\n" if code else f"{_plain(line)}  \n"


def _plain(line: str) -> str:
    """A line with what acts outside of its code spans escaped."""
    parts, end = [], 0
    for span in _SPAN.finditer(line):
        parts += [_ACTIVE.sub(_escaped, line[end : span.start()]), span.group()]
        end = span.end()
    return "".join([*parts, _ACTIVE.sub(_escaped, line[end:])])


def _escaped(found: re.Match[str]) -> str:
    """One backslash more before an active character, unless an odd number of them escapes it already."""
    backslashes, character = found.groups()
    return f"{backslashes}{'' if len(backslashes) % 2 else chr(92)}{character}"
