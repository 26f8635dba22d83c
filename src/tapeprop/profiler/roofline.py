"""The roofline plot: what rows reach, beside what the machine could do.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 2009; with a roof
for each cache as by Ilic, Pratas and Sousa, "Cache-aware roofline model: upgrading the loft", IEEE CAL 2014.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeprop.profiler.colours import phase_colour
from tapeprop.profiler.profile import Profile
from tapeprop.profiler.roofs import level_names, most_measured
from tapeprop.profiler.tables import figures
from tapeprop.profiler.text import one_line, seconds_text, share_text
from tapeprop.runtime.writing import whole_file

if TYPE_CHECKING:
    from tapeprop.profiler.tables import Figures

__all__ = ["FORMATS", "plot"]

#: What the end of a file's name may be.
FORMATS = ("png", "svg", "pdf")
_NAMED = 16  # rows that get a number and a line in the list beside the plot
_SIZE = (13.0, 7.0)  # inches


def plot(profile: Profile, path: str | os.PathLike) -> Path:
    """Draws the plot into a PNG, SVG or PDF file, as the end of its name says; `path`, which is given back. Needs matplotlib.

    A point is a row: operations per byte that it must move to the right, GFLOP/s upwards, its area the share of the time, its colour the
    phase. Lines are the roofs that were measured, for the dtype of most operations and as many workers as the tape with most has.
    Rows without operations have no place; a line below says how much time they take.
    ValueError for another ending, ImportError without matplotlib, OSError.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(f"plot_roofline: expected a path that ends in .png, .svg or .pdf, got {os.fspath(path)!r}")
    figure = _figure(profile)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter in a name that the font does not have
        figure.savefig(picture, format=ending, metadata={} if ending == "png" else _UNDATED[ending])
    with whole_file(path, binary=True) as file:
        file.write(picture.getbuffer())
    return Path(path)


# The day of drawing is no part of the picture: equal profiles give equal files, but for the ids inside an SVG.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _figure(profile: Profile) -> Any:
    """A matplotlib Figure. pyplot is not touched: it would change the caller's backend and keep the figure."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_roofline needs matplotlib; pip install 'tapeprop[viz]'") from error
    figure = Figure(figsize=_SIZE, dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.13, 0.66, 0.78))
    rows = figures(profile, "instruction")
    shown = [row for row in rows if row.flops > 0 and row.traffic > 0 and row.seconds > 0]
    dtype, workers = _dtype(profile), max((tape.workers for tape in profile.tapes), default=1)
    peak, levels = _roofs(profile, dtype, workers)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _limit(axes, shown, peak, levels)
    _draw_roofs(axes, peak, levels, dtype)
    _draw_rows(axes, shown)
    axes.set_xlabel("operations per byte that must be moved (FLOP/byte)")
    axes.set_ylabel("GFLOP/s")
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    title = f"{one_line(profile.what)}: {len(rows)} rows, {workers} worker{'s' if workers > 1 else ''}"
    axes.set_title(title, loc="left", parse_math=False, usetex=False)
    figure.text(0.06, 0.03, _note(profile, rows, shown), fontsize=8, color="#555", parse_math=False, usetex=False)
    _name_rows(figure, axes, shown)
    return figure


def _dtype(profile: Profile) -> str:
    """The dtype that most operations are done in."""
    flops: dict[str, int] = {}
    for tape in profile.tapes:
        for row, calls in zip(tape.rows, tape.calls.tolist()):
            flops[row.dtype] = flops.get(row.dtype, 0) + row.flops * calls
    return max(flops, key=flops.__getitem__, default="float32")


def _roofs(profile: Profile, dtype: str, workers: int) -> tuple[float, list[tuple[str, float]]]:
    """(GFLOP/s, [(name of a level, GB/s), ...]); NaN and none where nothing was measured."""
    if profile.roofs is None:
        return math.nan, []
    of_dtype = {n: rate for (kind, n), rate in profile.roofs.flops.items() if kind == dtype}
    peak = most_measured(of_dtype, workers, math.nan)
    levels = most_measured(profile.roofs.bandwidth, workers, ())
    names = level_names(len(levels))
    return peak / 1e9, [(name, rate / 1e9) for name, (_, rate) in zip(names, levels)]


def _limit(axes: Any, rows: list[Figures], peak: float, levels: list[tuple[str, float]]) -> None:
    """Limits that hold all points and the corners of the roofs."""
    across = [row.flops / row.traffic for row in rows]
    up = [row.gflops for row in rows]
    if peak > 0:
        up.append(peak)
        across += [peak / rate for _, rate in levels]
    if not across:
        across, up = [1.0], [1.0]
    axes.set_xlim(min(across) / 4, max(across) * 4)
    axes.set_ylim(min(up) / 3, max(up) * 2.5)


def _draw_roofs(axes: Any, peak: float, levels: list[tuple[str, float]], dtype: str) -> None:
    left, right = axes.get_xlim()
    low, _ = axes.get_ylim()
    style = {"color": "#444", "linewidth": 1.1, "zorder": 1}
    if peak > 0:
        start = max(left, min((peak / rate for _, rate in levels), default=left))
        axes.plot([start, right], [peak, peak], **style)
        text = f"fma peak, {dtype}: {peak:.3g} GFLOP/s"
        axes.annotate(
            text, (right, peak), (-6, 4), textcoords="offset points", ha="right", va="bottom", fontsize=8, color="#444"
        )
    for i, (name, rate) in enumerate(levels):
        end = min(right, peak / rate) if peak > 0 else right
        axes.plot([left, end], [left * rate, end * rate], linestyle="-" if i == len(levels) - 1 else "--", **style)
        begin = max(left, low / rate)
        at = begin * 1.12
        if at >= end:
            continue
        corners = axes.transData.transform([(at, at * rate), (end, end * rate)])
        angle = math.degrees(math.atan2(*(corners[1] - corners[0])[::-1]))
        axes.text(
            at,
            at * rate * 1.06,
            f"{name}: {rate:.3g} GB/s",
            rotation=angle,
            rotation_mode="anchor",
            fontsize=8,
            color="#444",
        )


def _draw_rows(axes: Any, rows: list[Figures]) -> None:
    phases = list(dict.fromkeys(row.phase for row in sorted(rows, key=lambda row: row.rows[0])))
    marks = []
    for phase in phases:
        mine = [row for row in rows if row.phase == phase]
        marks.append(
            axes.scatter(
                [row.flops / row.traffic for row in mine],
                [row.gflops for row in mine],
                s=[_area(row) for row in mine],
                color=phase_colour(phase),
                edgecolors="white",
                linewidths=0.6,
                alpha=0.85,
                zorder=3,
            )
        )
    if marks:
        legend = axes.legend(
            marks,
            list(map(one_line, phases)),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            title="phase",
        )
        for text, handle in zip(legend.get_texts(), legend.legend_handles):
            text.set_parse_math(False)
            handle.set_sizes([60])


def _name_rows(figure: Any, axes: Any, rows: list[Figures]) -> None:
    """Numbers the rows that take longest, at a free place beside each, and lists them to the right: names would cover one another."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    lines = []
    for number, row in enumerate(rows[:_NAMED], 1):
        lines.append(f"{number:2}  {seconds_text(row.seconds):>8} {share_text(row.share):>6}  {_label(row)}")
        radius = math.sqrt(_area(row) / math.pi)
        for across, up in _PLACES:
            label = axes.annotate(
                str(number),
                (row.flops / row.traffic, row.gflops),
                (across * (radius + 3), up * (radius + 3)),
                textcoords="offset points",
                ha="left" if across > 0 else "right" if across < 0 else "center",
                va="bottom" if up > 0 else "top" if up < 0 else "center",
                fontsize=8,
                zorder=4,
                arrowprops={"arrowstyle": "-", "color": "#999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
            )
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # an Annotation's own has its arrow in it
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
    if lines:
        head = " #      time  share  row"
        text = "\n".join([head, *lines])
        plain = {"family": "monospace", "fontsize": 6.5, "parse_math": False, "usetex": False}
        axes.text(1.015, 0.0, text, transform=axes.transAxes, va="bottom", linespacing=1.35, **plain)


# Beside the point, then farther and farther away.
_PLACES = [
    (across * far, up * far)
    for far in (1.0, 1.8, 2.8, 4.0, 5.5)
    for across, up in ((1, 0.3), (-1, 0.3), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def _area(row: Figures) -> float:
    """Of a row's point, in square points."""
    return 14 + 1500 * row.share


def _label(row: Figures) -> str:
    """Layer and op in at most 38 characters; of the op nothing is cut where that can be."""
    layer, op = map(one_line, (row.layer or row.node, row.op))
    room = max(37 - len(op), 0)
    kept = layer if len(layer) <= room else layer[: max(room - 2, 0)] + ".."
    return f"{kept} {op}".strip()[:38]


def _note(profile: Profile, rows: list[Figures], shown: list[Figures]) -> str:
    parts = []
    if not rows:
        parts.append("Nothing ran.")
    elif len(shown) < len(rows):
        kept = {id(row) for row in shown}
        hidden = [row for row in rows if id(row) not in kept]
        seconds, share = sum(row.seconds for row in hidden), sum(row.share for row in hidden)
        parts.append(
            f"{len(hidden)} rows without operations, {seconds_text(seconds)} ({share_text(share)}), have no place here."
        )
    if profile.roofs is None:
        parts.append("The roofs of the machine were not measured.")
    parts.append("Area: share of the time. Bytes: what a row must read and write at least.")
    return " ".join(parts)
