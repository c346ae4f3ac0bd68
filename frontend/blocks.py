"""Which lines of a Markdown text are code: CommonMark's containers, fences and indented code (spec.commonmark.org).

HTML, footnotes and whatever else could hold lines of its own are taken for text: `display` makes them that. Where
Streamlit's parser is not CommonMark's, or a table may stand where that has a paragraph, a backslash or a blank line
leaves one reading: a picture in what only we take for code would be loaded.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_QUOTE = 0
_DEEPEST = 20
"""Most containers in one another: a line costs time for each."""
_CODE_INDENT = 4

_MARK = re.compile(r" {0,3}(?:(?P<quote>>) ?|(?P<item>[-+*]|[0-9]{1,9}[.)])(?: {1,4}(?! )| (?= {4})|(?P<bare>$)))")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,}$")
_HEADING = re.compile(r" {0,3}#{1,6}(?: |$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)$")
_OPENING = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_DRAWN = re.compile(r"mermaid|[&\\]", re.IGNORECASE)
_TABLE = re.compile(r"^(?=[^\n]*[|:])(?=[^\n]*-)[ \t>|:*+.)0-9-]+$", re.MULTILINE)


class Line(NamedTuple):
    """One line to show, without its end. A fence's last line is none of code: nothing in it acts."""

    text: str
    code: bool


def lines(text: str) -> Iterator[Line]:
    """The lines of a text whose line ends are `\\n`, and blank ones that keep apart what a table would not."""
    blocks = _Blocks(tables=_TABLE.search(text) is not None)
    for line in text.split("\n"):
        yield from blocks.take(line)


class _Blocks:
    """What is open after the lines so far: containers, and in the innermost of them a fence, a paragraph or nothing.

    A container is the number of columns that its lines are indented by; a quote is `_QUOTE`, as it has marks instead.
    """

    def __init__(self, tables: bool) -> None:
        self._tables = tables
        self._containers: list[int] = []
        self._fence = ""
        self._paragraph = False
        self._indented = False
        """Whether indented code is open: for Streamlit's parser it stays so in blank lines."""
        self._bare = False
        """Whether the innermost container is an item of which there is only the mark."""

    def take(self, raw: str) -> Iterator[Line]:
        """The line as it is to be shown, and before it what it needs."""
        line = raw.expandtabs(4).rstrip(" ")
        depth, at = self._continued(line)
        if self._fence and depth == len(self._containers):
            return iter([Line(raw, code=not self._ends_fence(line[at:]))])
        return self._begun(raw, line, depth, at)

    def _continued(self, line: str) -> tuple[int, int]:
        """How many of the containers go on in a line, and the column behind their marks."""
        at = 0
        for depth, width in enumerate(self._containers):
            indent = _indent(line, at)
            blank = at + indent == len(line)
            bare = self._bare and depth == len(self._containers) - 1
            if width == _QUOTE:
                if indent >= _CODE_INDENT or not line.startswith(">", at + indent):
                    return depth, at
                at += indent + 1
                at += line.startswith(" ", at)
            elif bare if blank else indent < width:
                return depth, at
            else:
                at = min(at + width, len(line))
        return len(self._containers), at

    def _ends_fence(self, rest: str) -> bool:
        """Whether a line in a fence is its last one."""
        ended = _indent(rest, 0) < _CODE_INDENT and re.fullmatch(rf" *{self._fence}{self._fence[0]}*", rest) is not None
        if ended:
            self._fence = ""
        return ended

    def _begun(self, raw: str, line: str, depth: int, at: int) -> Iterator[Line]:
        """Opens the containers that begin in a line, and takes what follows their marks."""
        whole = depth == len(self._containers)
        interrupting, kept = whole and (self._paragraph or self._indented), whole and self._indented
        goes_on, bare = self._paragraph, False
        while not _RULE.match(line, at) and (mark := _MARK.match(line, at)):
            if depth == _DEEPEST or (interrupting and _interrupts_nothing(mark)):
                raw = line = _plain(line, mark)
                break
            self._leave(depth)
            bare = mark["bare"] is not None
            self._containers.append(_QUOTE if mark["quote"] else mark.end() - at + bare)
            depth, at, goes_on, kept = depth + 1, mark.end(), False, False
        if line[at:].strip(" "):
            return self._leaf(raw, line, depth, at, goes_on)
        self._leave(depth)
        self._bare, self._indented = bare, kept
        return iter([Line(raw, code=False)])

    def _leaf(self, raw: str, line: str, depth: int, at: int, goes_on: bool) -> Iterator[Line]:
        """Takes what is no container: code, a heading, a paragraph or more of one."""
        indented = _indent(line, at) >= _CODE_INDENT
        opening = _OPENING.match(line, at)
        alone = bool(_RULE.match(line, at) or _HEADING.match(line, at))
        if goes_on and (indented or not (opening or alone)):
            whole = depth == len(self._containers)
            if whole or not self._tables:
                self._paragraph = self._tables or not (whole and _UNDERLINE.match(line, at))
                self._indented = self._tables and indented
                yield Line(raw, code=False)
                return
            yield Line("", code=False)
        self._leave(depth)
        if opening:
            self._fence = opening[1]
            yield Line(_undrawn(raw, opening[1]), code=True)
        else:
            self._paragraph, self._indented = not (indented or alone), indented
            yield Line(raw, code=indented and "![" not in raw)

    def _leave(self, depth: int) -> None:
        """Closes all but the outermost containers, and what is open in the innermost."""
        del self._containers[depth:]
        self._fence, self._paragraph, self._indented, self._bare = "", False, False, False


def _indent(line: str, at: int) -> int:
    return len(line) - at - len(line[at:].lstrip(" "))


def _interrupts_nothing(mark: re.Match[str]) -> bool:
    """Whether an item begins where nothing is open only: an empty one, or one with another number than 1."""
    return bool(mark["item"]) and (mark["bare"] is not None or mark["item"][:-1] not in ("", "1"))


def _plain(line: str, mark: re.Match[str]) -> str:
    """The line with a backslash that makes a container's mark text."""
    end = mark.end("item" if mark["item"] else "quote") - 1
    return f"{line[:end]}\\{line[end:]}"


def _undrawn(raw: str, fence: str) -> str:
    """A fence's first line without what might make a diagram of it, which may load pictures."""
    head, _, info = raw.partition(fence)
    return f"{head}{fence}text" if _DRAWN.search(info) else raw
