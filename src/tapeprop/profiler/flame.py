"""Flame graphs: where the time goes by phase, node and op, as a picture and as text.

The picture and the text form are Brendan Gregg's ("The flame graph", CACM 2016). Widths are times; what stands side by side is in the
order of the tape, not of the alphabet.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tapeprop.profiler.colours import phase_colour
from tapeprop.profiler.profile import Profile
from tapeprop.profiler.tables import row_seconds
from tapeprop.profiler.text import seconds_text, share_text
from tapeprop.profiler.tracks import node_name
from tapeprop.runtime.writing import write_text

__all__ = ["folded", "stacks", "write"]

_WIDTH, _MARGIN, _HEIGHT, _HEAD = 1200, 10, 20, 46
_CHARACTER = 7.25  # pixels that a character of 12 pixels takes in the usual fonts of fixed width
_LEAST = (
    0.05  # pixels below which a frame is left out: thousands of rows would make a page slow that shows none of them
)


def stacks(profile: Profile) -> dict[tuple[str, ...], float]:
    """{(phase, node, op): seconds}, in the order of the tape; of one step where the profile is of one tape, else of all that ran.

    Of several tapes each has its name in front. A row counts as in `Profile.table`. A row of no node has its phase in brackets for one.
    """
    found: dict[tuple[str, ...], float] = {}
    steps = profile.tapes[0].steps if profile.per_step else 1
    for tape, seconds in zip(profile.tapes, row_seconds(profile)):
        front = (tape.name,) if len(profile.tapes) > 1 else ()
        for row, each, calls in zip(tape.rows, seconds.tolist(), tape.calls.tolist()):
            if calls:
                key = (*front, row.phase, node_name(row), row.op)
                found[key] = found.get(key, 0.0) + each * calls / steps
    return found


def folded(profile: Profile) -> str:
    """Collapsed stacks, a line each: "forward;stem;conv2d 1234", in nanoseconds; what flamegraph.pl and its like read.

    What `stacks` gives. In names, white space, control characters, ";" and "%" are written as %3B and so on, in UTF-8. What takes less
    than half a nanosecond is left out.
    """
    lines = ((";".join(map(_plain, key)), round(seconds * 1e9)) for key, seconds in stacks(profile).items())
    return "".join(f"{name} {count}\n" for name, count in lines if count > 0)


def _plain(name: str) -> str:
    def escape(found: re.Match) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "replace"))

    return re.sub(r"[\s;%\x00-\x1f\x7f\ud800-\udfff]", escape, name) or "%20"


# ---- the picture


def write(profile: Profile, path: str | os.PathLike) -> Path:
    """Writes the flame graph as one SVG file that needs nothing else; `path`, which is given back.

    What a frame is stands in a hint where the pointer rests. Where scripts run, a click makes a frame as wide as the picture, and a
    click on the lowest one shows all again. ValueError for a path that does not end in .svg; OSError.
    """
    if Path(path).suffix.lower() != ".svg":
        raise ValueError(f"to_flame_graph: expected a path that ends in .svg, got {os.fspath(path)!r}")
    return write_text(path, _parts(profile))


@dataclass
class _Frame:
    """A frame and what stands on it. phase: the one that it belongs to, "" above all phases."""

    name: str
    phase: str
    seconds: float = 0.0
    inner: dict[str, _Frame] = field(default_factory=dict)

    def add(self, names: tuple[str, ...], phase: int, seconds: float) -> None:
        """Adds to this frame and to those that `names` lead to; names[phase] is a phase."""
        self.seconds += seconds
        if names:
            first, *rest = names
            inner = self.inner.setdefault(first, _Frame(first, first if phase == 0 else self.phase))
            inner.add(tuple(rest), phase - 1, seconds)

    def walk(self, start: float = 0.0, depth: int = 0, above: tuple[str, ...] = ()) -> Iterator[tuple]:
        """(frame, seconds before it, depth, names below it) of this frame and of all on it."""
        yield self, start, depth, above
        for inner in self.inner.values():
            yield from inner.walk(start, depth + 1, (*above, self.name))
            start += inner.seconds


def _tree(profile: Profile) -> _Frame:
    name = profile.tapes[0].name if len(profile.tapes) == 1 else profile.what
    root = _Frame(name, "")
    for names, seconds in stacks(profile).items():
        root.add(names, len(names) - 3, seconds)
    return root


def _parts(profile: Profile) -> Iterator[str]:
    root = _tree(profile)
    frames = list(root.walk())
    rows = 1 + max(depth for _, _, depth, _ in frames)
    height = _HEAD + rows * _HEIGHT + _MARGIN
    unit = "of a step" if profile.per_step else "in all"
    heading = f"{root.name}: {seconds_text(root.seconds)} {unit}, by phase, node and op"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'style="max-width:100%;height:auto;background:#fff" role="img" aria-label="{_escape(heading)}">\n'
        f"<style>{_STYLE}</style>\n"
        f'<text x="{_MARGIN}" y="20" class="heading">{_escape(heading)}</text>\n'
        f'<text x="{_MARGIN}" y="37" class="note" id="note">{_escape(_note(profile, root))}</text>\n'
    )
    inside = _WIDTH - 2 * _MARGIN
    for frame, before, depth, above in frames:
        x, width = (part / root.seconds if root.seconds else 0.0 for part in (before, frame.seconds))
        if depth == 0:
            width = 1.0
        if width * inside >= _LEAST:
            y = height - _MARGIN - (depth + 1) * _HEIGHT
            yield _frame(frame, x, width, y, depth, _title(frame, root, above, unit))
    yield f"<script><![CDATA[{_SCRIPT % (_MARGIN, inside, _CHARACTER)}]]></script>\n</svg>\n"


def _note(profile: Profile, root: _Frame) -> str:
    if not root.seconds:
        return "Nothing ran."
    dropped = f" The spans of {profile.dropped:,} earlier calls were dropped." if profile.dropped else ""
    return "Rest on a frame to see what it is; click to enlarge it, click the lowest one to see all." + dropped


def _title(frame: _Frame, root: _Frame, above: tuple[str, ...], unit: str) -> str:
    share = share_text(frame.seconds / root.seconds) if root.seconds else "-"
    place = f"\nin {' / '.join(above[1:])}" if len(above) > 1 else ""
    return f"{frame.name}{place}\n{seconds_text(frame.seconds)} {unit}, {share}"


def _frame(frame: _Frame, x: float, width: float, y: int, depth: int, title: str) -> str:
    inside = _WIDTH - 2 * _MARGIN
    pixels = width * inside
    colour = phase_colour(frame.phase) if frame.phase else "#d8d8d8"
    solid = 1.0 if any(inner.inner for inner in frame.inner.values()) else 0.8 if frame.inner else 0.6
    # A viewport of its own cuts what of the text is too long.
    return (
        f'<svg class="frame" x="{_MARGIN + x * inside:.2f}" y="{y}" width="{pixels:.2f}" height="{_HEIGHT - 1}" '
        f'data-x="{x:.7f}" data-w="{width:.7f}" data-d="{depth}" data-name="{_escape(frame.name)}">'
        f'<title>{_escape(title)}</title><rect width="100%" height="100%" fill="{colour}" fill-opacity="{solid}"/>'
        f'<text x="4" y="14">{_escape(_cut(frame.name, pixels))}</text></svg>\n'
    )


def _cut(name: str, pixels: float) -> str:
    """As much of a name as fits, with dots where some is missing; "" where less than three characters would be seen."""
    room = int((pixels - 8) / _CHARACTER)
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name]
    if sum(widths) <= room:
        return name
    kept, used = 0, 2
    while kept < len(name) and used + widths[kept] <= room:
        used += widths[kept]
        kept += 1
    return name[:kept] + ".." if kept >= 1 and room >= 3 else ""


def _escape(text: str) -> str:
    """Text as XML holds it; what no XML may hold becomes the replacement character."""
    kept = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    return html.escape(kept)


_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#111}"
    ".heading{font:bold 15px system-ui,sans-serif}.note{font:12px system-ui,sans-serif;fill:#555}"
    ".frame text{pointer-events:none}.frame rect{stroke:#fff;stroke-width:.5}"
    ".frame:hover rect{stroke:#111;stroke-width:1.5}.out{display:none}.below rect{opacity:.55}"
)

# Numbers: the margin, the width of the lowest frame, the width of a character.
_SCRIPT = """
(function () {
  "use strict";
  var margin = %s, inside = %s, character = %s;
  var frames = Array.prototype.slice.call(document.querySelectorAll("svg.frame"));
  function number(frame, name) { return parseFloat(frame.getAttribute("data-" + name)); }
  function cut(name, pixels) {
    var letters = Array.from(name), room = Math.floor((pixels - 8) / character);
    if (letters.length <= room) return name;
    return room >= 3 ? letters.slice(0, room - 2).join("") + ".." : "";
  }
  function zoom(chosen) {
    var x0 = number(chosen, "x"), w0 = number(chosen, "w"), depth = number(chosen, "d"), near = 1e-6;
    frames.forEach(function (frame) {
      var x = number(frame, "x"), w = number(frame, "w"), d = number(frame, "d");
      var below = d < depth && x <= x0 + near && x + w >= x0 + w0 - near;
      var on = d >= depth && x >= x0 - near && x + w <= x0 + w0 + near;
      frame.classList.toggle("out", !below && !on);
      frame.classList.toggle("below", below);
      var left = below ? 0 : (x - x0) / w0, wide = below ? 1 : w / w0;
      frame.setAttribute("x", margin + left * inside);
      frame.setAttribute("width", Math.max(wide * inside, 0));
      frame.querySelector("text").textContent = cut(frame.getAttribute("data-name"), wide * inside);
    });
  }
  frames.forEach(function (frame) {
    frame.style.cursor = "pointer";
    frame.addEventListener("click", function () { zoom(frame); });
  });
})();
"""
