"""How the model's text is put on the page: its Markdown is rendered, and nothing else in it acts.

Only what is shown passes through here. What is stored, sent back and downloaded is the text as it came.
"""

import re
from collections.abc import Callable

# A picture in what we take for code and Markdown does not would be loaded. So a fence ends with its list item, a span
# with its line, neither begins inside of HTML, which is escaped, and a span that holds a picture is none.
_FENCE = re.compile(
    r"^( {0,3})(`{3,}|~{3,})[^`\n]*$(?:\n(?! {0,3}\2[`~]*[ \t]*$)(?:\1[^\n]*|[ \t]*$))*(?:\n {0,3}\2[`~]*[ \t]*$)?",
    re.MULTILINE,
)
_SPAN = re.compile(r"(?<![`\\])(`+)(?!`)(?:(?!\n|!\[).)+?(?<!`)\1(?!`)")
_ACTIVE = re.compile(r"(\\*)(\$|:(?=:*[a-zA-Z])|(?<=!)\[|<(?=[a-zA-Z/!?]))")


def shown(text: str) -> str:
    """Markdown that Streamlit shows as the text reads.

    Outside code, `$` would begin a formula, `:red[` a colour, and `![` would load a picture from wherever the model
    says; a backslash makes them plain, and `<`, which would hide them. Single line ends are kept.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _outside(_FENCE, text, lambda prose: _outside(_SPAN, prose, _plain))


def _outside(code: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """Changes what lies between the matches of `code`."""
    parts, end = [], 0
    for found in code.finditer(text):
        parts += [change(text[end : found.start()]), found.group()]
        end = found.end()
    return "".join([*parts, change(text[end:])])


def _plain(prose: str) -> str:
    return _ACTIVE.sub(_escaped, prose).replace("\n", "  \n")


def _escaped(found: re.Match[str]) -> str:
    """One backslash more before an active character, unless an odd number of them escapes it already."""
    backslashes, character = found.groups()
    return f"{backslashes}{'' if len(backslashes) % 2 else chr(92)}{character}"
