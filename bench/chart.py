"""Chart: horizontal bars as SVG. Written by hand: bars and labels are all that is needed, and a library is 50 MB."""

from collections.abc import Mapping
from xml.sax.saxutils import escape

WIDTH, LABEL, VALUE, ROW, TITLE = 720, 190, 90, 26, 40
_STYLE = "text{font:13px sans-serif;fill:#24292f}.title{font-weight:bold}.bar{fill:#8c959f}.ours{fill:#2f6feb}"


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """An SVG document with one bar a name, in the order given; names that begin with Parley stand out."""
    longest = max(values.values(), default=0.0) or 1.0
    height = TITLE + ROW * len(values) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="8" y="24">{escape(title)} ({escape(unit)})</text>',
    ]
    for index, (name, value) in enumerate(values.items()):
        top = TITLE + ROW * index
        length = (WIDTH - LABEL - VALUE) * value / longest
        kind = "ours" if name.startswith("Parley") else "bar"
        parts += [
            f'<text x="{LABEL - 8}" y="{top + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{top + 3}" width="{max(length, 1):.1f}" height="{ROW - 8}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{top + 16}">{_number(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
