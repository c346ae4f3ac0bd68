"""How the model's text is put on the page: its Markdown is rendered, and nothing else in it acts.

Only what is shown passes through here. What is stored, sent back and downloaded is the text as it came.
"""

import re

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_ACTS = re.compile(r"\\?(?:\$|:(?=[a-z])|!(?=\[))")
_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")


def shown(text: str) -> str:
    """Markdown that Streamlit shows as the text reads.

    Outside code, `$` would begin a formula, `:red[` a colour and `![` load a picture from wherever the model says; a
    backslash makes them plain. A single line end is kept. HTML needs nothing: Streamlit shows it as text.
    """
    return _outside(_FENCE, text, lambda prose: _outside(_SPAN, prose, _plain))
