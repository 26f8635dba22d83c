"""`Live`: what a fit does while it does it, in the terminal."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from tapeprop.profiler.hot import HotRow, Sampler
from tapeprop.profiler.text import seconds_text, share_text, size_text
from tapeprop.training.callbacks import Progress

__all__ = ["Live"]

CURVE = 48  # columns of the loss curve
BARS = "▁▂▃▄▅▆▇█"
BAR = 16  # columns of the largest share
SHOWN_IN_LINES = 3  # instructions in the line of an epoch
CHROME = 12  # lines of the display around the instructions
WIDTH = 100  # of the display, where the terminal has so many columns
HEADINGS = ("hottest instructions", "layer", "phase", "time", "share", "")


class Live(Progress):
    """Shows throughput, loss and metrics, memory and the hottest instructions while fit() runs; takes the place of `Progress`.

    On a terminal a display that is drawn anew every `refresh` seconds, and a line above it for each epoch; elsewhere the lines
    alone, with the hottest three instructions, and a table of the hottest `top` at the end. stream: stderr by default. One that breaks or
    closes ends the show, not the training.

    Times are sampled: in each `refresh` seconds one native call (0.1 s of steps) is recorded by the executor, and the others run as
    they do without it. Those of whole batches are shown, and how many calls were seen; instructions of one op in one layer count
    together, of several workers the busiest counts. The values' memory is that of the tape's arena; the process's is what the
    system says it has now.

    Needs rich (ImportError): pip install 'tapeprop[progress]'. ValueError for top below 1, or refresh not above 0.
    """

    def __init__(self, top: int = 8, refresh: float = 0.25, stream: IO[str] | None = None):
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise ValueError(f"Live: top must be a whole number >= 1; received {top!r}")
        if isinstance(refresh, bool) or not isinstance(refresh, int | float) or not 0 < refresh < math.inf:
            raise ValueError(f"Live: refresh must be a number of seconds > 0; received {refresh!r}")
        _rich()
        super().__init__(bar=False, stream=stream)
        self.top, self.refresh = top, refresh
        self._sampler = Sampler()
        self._display: Any = None

    # ---- hooks

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._sampler = Sampler()
        self._begin = self._drawn = time.perf_counter()
        self._epoch, self._done, self._calls, self._rate = 0, 0, 0, math.nan
        self._logs: dict[str, float] = {}
        self._validating = False
        self._curve: deque[float] = deque(maxlen=CURVE)
        self._parameters = _parameter_bytes(self.run.graph)
        self._quietly(self._open)
        self._sampler.start()

    def on_epoch_begin(self, epoch: int) -> None:
        super().on_epoch_begin(epoch)
        self._epoch, self._done = epoch, 0
        self._drawn = time.perf_counter()

    def on_batch_end(self, done: int, logs: Mapping[str, float]) -> None:
        self._sampler.stop()
        self._calls += 1
        self._done = done
        self._validating = self.run.validated and done >= self.run.batches
        now = time.perf_counter()
        if now - self._drawn < self.refresh and done < self.run.batches:
            return
        self._logs |= logs
        if "loss" in logs:
            self._curve.append(float(logs["loss"]))
        # Of the epoch so far: between two drawings there may be one small batch alone, which says nothing.
        self._rate = self._samples(done) / max(now - self._start, 1e-9)
        self._drawn = now
        self._draw()
        self._sampler.start()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        self._logs |= logs
        self._validating = False
        super().on_epoch_end(epoch, logs)
        if self._display is None and (hottest := self._sampler.top(SHOWN_IN_LINES)):
            words = ", ".join(f"{_name(row)} {share_text(row.share)}" for row in hottest)
            self._quietly(self._line, f"  hottest: {words}; {self._memory()}")
        self._draw()

    def on_train_end(self) -> None:
        self._sampler.stop()
        display = self._display
        if display is not None:
            self._quietly(display.update, self._picture())
            self._display = None
            _close(display, self._broken)
        elif hottest := self._sampler.top(self.top):
            for row in hottest:
                self._quietly(self._line, f"  {seconds_text(row.seconds):>8}  {share_text(row.share):>6}  {_name(row)}")
        self._sampler = Sampler()  # what it heard of holds the graph's memory
        super().on_train_end()

    # ---- drawing

    def _open(self) -> None:
        """Begins the display where the stream is a terminal that can move its cursor."""
        rich = _rich()
        if not _is_terminal(self._out):
            return
        console = _console(self._out)
        if not console.is_terminal or console.is_dumb_terminal:
            return
        # Output of the program's own is shown above the display, but never taken away from a pipe or a file.
        display = rich.live.Live(
            self._picture(),
            console=console,
            auto_refresh=False,  # a thread of its own would meet a stream that breaks where nobody catches it
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        display.start()  # one that cannot begin, since its stream is broken, cannot be stopped either
        self._display = display

    def _draw(self) -> None:
        if self._display is not None and not self._broken:
            self._quietly(self._display.update, self._picture(), refresh=True)

    def _line(self, text: str) -> None:
        if self._display is not None:
            self._display.console.print(text, markup=False, emoji=False, soft_wrap=True)
        else:
            super()._line(text)

    def _picture(self) -> Any:
        """The display as it is now."""
        rich = _rich()
        head = rich.table.Table.grid(padding=(0, 1))
        head.add_row(
            rich.text.Text(self._title(self._epoch), style="bold"),
            rich.progress_bar.ProgressBar(total=max(self.run.batches, 1), completed=self._done, width=30),
            f"{self._done:,}/{self.run.batches:,} batches",
            self._state(),
        )
        figures = rich.text.Text(_filled(self._figures(), self._width() - 4))
        parts = [head, figures]
        if len(self._curve) > 1:
            parts.append(rich.text.Text(f"loss {_curve(list(self._curve))}", style="cyan"))
        parts.append(rich.text.Text(self._memory(), style="dim"))
        parts.append(self._hottest())
        return rich.panel.Panel(rich.console.Group(*parts), title="tapeprop", title_align="left", width=self._width())

    def _width(self) -> int:
        return min(self._display.console.width if self._display is not None else WIDTH, WIDTH)

    def _hottest(self) -> Any:
        rich = _rich()
        room = self._display.console.height - CHROME if self._display is not None else self.top
        rows = self._sampler.top(max(min(self.top, room), 1))
        table = rich.table.Table(box=None, padding=(0, 1), pad_edge=False, title_justify="left", caption_justify="left")
        for heading, justify in zip(HEADINGS, ("left", "left", "left", "right", "right", "left"), strict=True):
            table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis")
        for row in rows:
            bar = rich.text.Text("█" * round(row.share / rows[0].share * BAR), style="yellow")
            cells = (row.op, row.layer, row.phase, seconds_text(row.seconds), share_text(row.share))
            table.add_row(*map(rich.text.Text, cells), bar)
        table.caption = f"times of a step, seen in {self._sampler.calls:,} of {self._calls:,} native calls"
        return table

    # ---- figures

    def _samples(self, batches: int) -> float:
        return self.run.samples * batches / max(self.run.batches, 1)

    def _state(self) -> str:
        passed = time.perf_counter() - self._begin
        if self._validating:
            return f"{seconds_text(passed)}, validating"
        done = self._epoch + self._done / max(self.run.batches, 1)
        left = passed / done * (self.run.epochs - done) if done > 0 else math.nan
        return f"{seconds_text(passed)}, {seconds_text(left)} left" if left > 0 else seconds_text(passed)

    def _figures(self) -> list[str]:
        found = [f"{self._rate:,.0f} samples/s"] if self._rate == self._rate else []
        return [*found, *(f"{name} {value:.4g}" for name, value in self._logs.items())]

    def _memory(self) -> str:
        words = [f"values {size_text(self._sampler.arena)}"] if self._sampler.arena else []
        words += [f"parameters {size_text(self._parameters)}"] if self._parameters else []
        return ", ".join([*words, _process_memory()])


def _rich() -> Any:
    """The library. ImportError with what to install."""
    try:
        import rich
        import rich.console
        import rich.live
        import rich.panel
        import rich.progress_bar
        import rich.table
        import rich.text
    except ImportError:
        raise ImportError(
            "Live needs rich: pip install 'tapeprop[progress]'; Progress shows a bar or lines without it"
        ) from None
    return rich


def _console(stream: IO[str]) -> Any:
    """A console on the stream, which says when it breaks: rich would end the process."""

    base: Any = _rich().console.Console

    class Console(base):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            raise BrokenPipeError

    return Console(file=stream, highlight=False)


def _close(display: Any, broken: bool) -> None:
    """Ends a display, which gives stdout and stderr back, whether its stream still takes anything or not."""
    display.console.quiet = broken
    with contextlib.suppress(OSError, ValueError):
        display.stop()


def _name(row: HotRow) -> str:
    where = f" of {row.layer}" if row.layer else ""
    return f"{row.op}{where} ({row.phase})"


def _filled(words: list[str], width: int) -> str:
    """Words side by side, on as many lines as they need; none is broken."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 2 + len(word) > width:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + word
    return "\n".join(lines)


def _curve(values: list[float]) -> str:
    """Values as bars from the smallest to the largest, of their logarithms where all are positive; a space for what is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    scale = math.log if finite and min(finite) > 0 else float
    heights = [scale(value) if math.isfinite(value) else math.nan for value in values]
    low, high = (scale(min(finite)), scale(max(finite))) if finite else (0.0, 0.0)
    step = (high - low) / len(BARS) or 1.0
    return "".join(" " if h != h else BARS[min(int((h - low) / step), len(BARS) - 1)] for h in heights)


def _parameter_bytes(graph: Any) -> int:
    """Of all parameters, trained or not; 0 for a graph that does not tell."""
    named = getattr(graph, "named_parameters", None)
    if named is None:
        return 0
    return sum(p.size * np.dtype(p.dtype or graph.dtype).itemsize for _, p in named())


def _process_memory() -> str:
    """What of the process lies in memory now, or the most that has, where the system tells only that."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return f"process {size_text(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))}"
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return "process unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"process {size_text(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} at most"


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
