"""How the SVG drawings look: colours, text widths, and the elements that both kinds of drawing are made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape

FONT_SIZE = 12.0
#: Of one character: most monospaced fonts have 0.6 of their size.
CHARACTER = 7.25
ARROW = 5.0

_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})\Z")

# Every rule begins with the class, as a style inside a notebook page counts for the whole page.
_LIGHT = "--box:#f5f8fc;--rim:#8fa1b5;--ink:#17212c;--dim:#51606f;--root:#1c7c54;--term:#b3541e;--norm:#7a5ea8;--frame:#7f8ea01f"
_DARK = "--box:#232c37;--rim:#7b8ea3;--ink:#e8eef5;--dim:#a9b8c7;--root:#4cc38a;--term:#f0935b;--norm:#b79ae0;--frame:#7f8ea02e"
STYLE = (
    f".tapeprop-drawing{{{_LIGHT};--line:#8593a3;--mark:#e0662b;"
    f'font:{FONT_SIZE:g}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}}'
    f"@media(prefers-color-scheme:dark){{.tapeprop-drawing{{{_DARK}}}}}"
    ".tapeprop-drawing text{fill:var(--ink);white-space:pre}"
    ".tapeprop-drawing .name{font-weight:600}"
    ".tapeprop-drawing .dim{fill:var(--dim)}"
    ".tapeprop-drawing .box{fill:var(--box);stroke:var(--rim);stroke-width:1.2}"
    ".tapeprop-drawing .root>.box{stroke:var(--root);stroke-width:2}"
    ".tapeprop-drawing .term>.box{stroke:var(--term);stroke-width:2}"
    ".tapeprop-drawing .norm>.box{stroke:var(--norm);stroke-dasharray:2 3}"
    ".tapeprop-drawing .frozen>.box{stroke-dasharray:6 4}"
    ".tapeprop-drawing .line{fill:none;stroke:var(--line);stroke-width:1.3}"
    ".tapeprop-drawing .head{fill:var(--line)}"
    ".tapeprop-drawing .stopped{stroke-dasharray:5 4}"
    ".tapeprop-drawing .label{font-size:10.5px;fill:var(--line)}"
    ".tapeprop-drawing .merge{fill:#3867a8}"
    ".tapeprop-drawing .tag{fill:#66737f;stroke:#fff8;stroke-width:.8}"
    ".tapeprop-drawing .tag-root{fill:#1c7c54}.tapeprop-drawing .tag-term{fill:#b3541e}"
    ".tapeprop-drawing .tag-frozen{fill:#2f7fa8}.tapeprop-drawing .tag-checkpoint{fill:#7a5ea8}"
    ".tapeprop-drawing .tag-shared{fill:#94690c}.tapeprop-drawing .tag-python{fill:#b3352b}"
    ".tapeprop-drawing .pill{fill:#fff;font-size:10px;font-weight:600}"
    ".tapeprop-drawing .frame{fill:var(--frame)}"
    ".tapeprop-drawing .on{fill:var(--dim);font-weight:600}"
    ".tapeprop-drawing g:hover>.box{stroke:var(--mark)}"
    ".tapeprop-drawing g:hover>.line{stroke:var(--mark);stroke-width:2}"
    ".tapeprop-drawing g:hover>.head{fill:var(--mark)}"
)


def document(title: str, width: float, height: float, parts: Sequence[str], margin: float = 12.0) -> str:
    """A whole SVG drawing of parts that lie in (0, 0) to (width, height): nothing in it refers to anything outside."""
    w, h = width + 2 * margin, height + 2 * margin
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tapeprop-drawing" role="img" width="{w:.0f}" height="{h:.0f}" '
        f'viewBox="{-margin:g} {-margin:g} {w:.1f} {h:.1f}"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text_width(value: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is in a monospaced font; East Asian wide characters count twice, combining ones not at all."""
    cells = sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in value)
    return cells * CHARACTER * size / FONT_SIZE


def shortened(value: str, limit: int) -> str:
    """One line of at most `limit` cells, with an ellipsis where something is left out."""
    value = value.replace("\n", "↵")
    if text_width(value) <= limit * CHARACTER:
        return value
    kept = ""
    for c in value:
        if text_width(kept + c) > (limit - 1) * CHARACTER:
            break
        kept += c
    return kept + "…"


def words(x: float, y: float, value: str, kind: str = "", anchor: str = "", fill: str = "") -> str:
    """A line of text whose middle is at y."""
    extra = f' text-anchor="{anchor}"' if anchor else ""
    extra += f' style="fill:{fill}"' if fill else ""  # over the rules of the style
    extra += f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em"{extra}>{escape(value)}</text>'


def rectangle(x: float, y: float, w: float, h: float, kind: str, radius: float = 4.0, fill: str = "") -> str:
    """A box with round corners."""
    extra = f' style="fill:{fill}"' if fill else ""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius:g}"{extra}/>'


def arrow_head(x: float, y: float, dx: int, dy: int) -> str:
    """The tip of an arrow that comes to (x, y) in the direction (dx, dy), one of them 0, the other 1 or -1."""
    a, side = ARROW * 1.4, ARROW * 0.7
    points = [
        (x, y),
        (x - a * dx - side * dy, y - a * dy - side * dx),
        (x - a * dx + side * dy, y - a * dy + side * dx),
    ]
    return f'<path class="head" d="M{"L".join(f"{px:.1f} {py:.1f}" for px, py in points)}Z"/>'


def check_colours(fills: Mapping[str, str]) -> None:
    """ValueError for what is no colour of the form #rgb or #rrggbb: the colour of the text on it is chosen by its lightness."""
    for key, colour in fills.items():
        if not isinstance(colour, str) or not _COLOUR.match(colour):
            raise ValueError(f"svg: expected a colour such as '#f4a261' for {key!r}, got {colour!r}")


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2.1); "" for no colour."""
    if not colour:
        return ""
    digits = colour[1:] if len(colour) == 7 else "".join(c + c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111111" if light > 0.179 else "#ffffff"
