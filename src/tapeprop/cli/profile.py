"""`tapeprop profile`: where the time and the memory of a graph's step go, and what changed between two measurements."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeprop.cli import feed
from tapeprop.cli.output import add_json, print_json, whole_number
from tapeprop.cli.source import HELP, build, guarded, load
from tapeprop.profiler.text import one_line, share_text, size_text

if TYPE_CHECKING:
    from tapeprop import LayerGraph
    from tapeprop.profiler.compare import Comparison
    from tapeprop.profiler.profile import Profile, TapeInfo

BY = ("instruction", "op", "node", "layer", "phase")
SORTS = ("time", "row", "calls", "flops", "bytes", "wait", "name")
REPEATS = 20
TOP = 20
HOLDERS = 3
#: {option: (method of Profile, what it writes)}.
WRITERS = {
    "html": ("to_html", "a page with timeline, memory and graph"),
    "chrome_trace": ("to_chrome_trace", "a trace for Perfetto and chrome://tracing (JSON)"),
    "speedscope": ("to_speedscope", "a profile for speedscope (JSON)"),
    "flame_graph": ("to_flame_graph", "a flame graph by phase, node and op (SVG)"),
    "roofline": ("plot_roofline", "a roofline plot (PNG, SVG or PDF); needs matplotlib"),
    "save": ("to_json", "the whole profile (JSON), for --compare and for GRAPH"),
}
#: Options that say what is measured, and mean nothing where nothing is.
MEASURING = ("input_shape", "batch_size", "repeats", "workers", "dtype", "loss", "optimizer")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "profile",
        help="show where time and memory of a step go",
        description="Measures training steps of a graph instruction by instruction, and says where time and memory went. Nothing "
        "is trained. Or compares two profiles that were saved.",
        epilog="A Python file may define profile_data(), which gives (X, y) or (X, y, loss) of one batch: then that is measured "
        "instead of random data. Exit codes: 0 done, 1 it failed or --fail-above was passed, 2 wrong usage.",
    )
    command.add_argument("graph", nargs="?", metavar="GRAPH", help=f"{HELP}; or a profile (.json) saved with --save")
    measured = command.add_argument_group("what is measured")
    add_measuring(measured)
    measured.add_argument(
        "--repeats", type=whole_number(1), metavar="N", help=f"steps that are measured (default: {REPEATS})"
    )
    _add_showing(command.add_argument_group("what is printed"))
    add_json(command)
    files = command.add_argument_group("files")
    for name, (_, what) in WRITERS.items():
        files.add_argument(f"--{name.replace('_', '-')}", metavar="PATH", help=f"write {what}")
    comparing = command.add_argument_group("comparing")
    comparing.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="say what changed between two saved profiles, and how surely",
    )
    comparing.add_argument(
        "--fail-above",
        type=_percent,
        metavar="P%",
        help="exit with 1 where a step became slower by surely more than this, as 5%%",
    )
    command.set_defaults(run=run)


def add_measuring(group: Any) -> None:
    """Adds the options that say what a graph is fed with and how it is built."""
    group.add_argument(
        "--input-shape",
        type=feed.shape,
        action="append",
        metavar="N,C,H,W",
        help="of the input, as 32,3,32,32; once for each input",
    )
    group.add_argument(
        "--batch-size", type=whole_number(1), metavar="N", help=f"samples in a step (default: {feed.BATCH})"
    )
    group.add_argument("--workers", type=whole_number(1), metavar="N", help="threads (default: as built, or the CPUs)")
    group.add_argument("--dtype", choices=["float32", "float64"], help="(default: as built, or float32)")
    group.add_argument(
        "--loss", choices=feed.loss_names(), metavar="LOSS",
        help=f"{', '.join(feed.loss_names())}; auto: cross-entropy for outputs (N, C), else mse; none: predict() is measured, no step",
    )  # fmt: skip
    group.add_argument("--optimizer", choices=["sgd", "adam"], help="(default: the graph's own, or sgd)")


def _add_showing(group: Any) -> None:
    group.add_argument("--by", choices=BY, default=BY[0], help="what a line stands for (default: instruction)")
    group.add_argument("--sort", choices=SORTS, default=SORTS[0], help="(default: time)")
    group.add_argument(
        "--top", type=whole_number(0), default=TOP, metavar="N", help=f"lines, 0 for all (default: {TOP})"
    )
    group.add_argument(
        "--counters", action="store_true", help="print the exact figures alone, which repeat from run to run"
    )


def run(args: argparse.Namespace) -> int:
    """Measures or compares, prints and writes; the exit code."""
    wrong = _misuse(args)
    if wrong:
        print(f"tapeprop profile: error: {wrong}", file=sys.stderr)
        return 2
    if args.compare:
        return _compare(args)
    check_outputs(args)
    profile = _read(args.graph) if args.graph.endswith(".json") else measure(args)
    for name, (method, _) in WRITERS.items():
        if getattr(args, name) is not None:
            getattr(profile, method)(getattr(args, name))
            print(f"wrote {getattr(args, name)}", file=sys.stderr)
    if args.counters:
        print_json(profile.counters) if args.json else print(counters_text(profile))
    elif args.json:
        print_json(report(profile, args.by, args.sort, args.top or None))
    else:
        print(text(profile, args.by, args.sort, args.top or None))
    return 0


def _misuse(args: argparse.Namespace) -> str:
    """What is wrong with the arguments together; "" where nothing is."""
    given = [name for name in MEASURING if getattr(args, name) is not None]
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if args.compare:
        written = [name for name in WRITERS if getattr(args, name) is not None]
        if args.graph is not None:
            return f"--compare takes two saved profiles and no graph, received {args.graph!r} as well"
        if given or written or args.counters:
            return "--compare measures nothing; it goes with --by, --top, --json and --fail-above alone"
        return ""
    if args.fail_above is not None:
        return "--fail-above needs --compare BEFORE AFTER"
    if args.graph is None:
        return f"expected a graph: {HELP}; or --compare BEFORE AFTER"
    if args.graph.endswith(".json") and given:
        return f"{args.graph} is a profile that was measured already; {options} would change nothing"
    return ""


# ---- measuring


def measure(args: argparse.Namespace) -> Profile:
    """The profile that the arguments ask for."""
    graph, given, name = prepared(args.graph, args)
    with guarded(name):
        return graph.profile(given.X, given.y, given.loss, repeats=args.repeats or REPEATS)


def prepared(text: str, args: argparse.Namespace) -> tuple[LayerGraph, feed.Feed, str]:
    """(the graph that `text` names, built and with an optimizer where it is trained, a batch for it, its name)."""
    from tapeprop import optimizers
    from tapeprop.errors import GraphError

    source = load(text)
    graph = source.graph
    print(f"graph: {source.name}", file=sys.stderr)
    try:
        graph.check()
    except GraphError as error:
        raise ValueError(f"{source.name}: {error}") from error
    given = feed.feed(source, args.input_shape, args.batch_size, args.loss or "auto")
    with guarded(source.name):
        graph = build(graph, dtype=args.dtype, workers=args.workers)
    if args.optimizer is not None:
        for node in graph.labels:
            node.set_optimizer(None)
        graph.set_optimizer({"sgd": optimizers.SGD, "adam": optimizers.Adam}[args.optimizer]())
    elif given.loss is not None and _without_optimizer(graph):
        graph.set_optimizer(optimizers.SGD())
        print("optimizer: SGD, where the graph has none", file=sys.stderr)
    return graph, given, source.name


def _without_optimizer(graph: LayerGraph) -> bool:
    """Whether there are weights that no optimizer advances."""
    graph.synchronise_optimizers()
    advanced = {parameter for unit in graph.optimizer_units for parameter in unit.parameters}
    return any(p.trainable and p not in advanced for _, p in graph.named_parameters())


def check_outputs(args: argparse.Namespace) -> None:
    """Whether all files can be written, before anything is measured. ValueError, or OSError that names the path."""
    paths = {name: getattr(args, name) for name in WRITERS if getattr(args, name) is not None}
    if len({os.path.abspath(path) for path in paths.values()}) < len(paths):
        raise ValueError("two files have the same path; give each its own")
    if "roofline" in paths:
        from tapeprop.profiler.roofline import FORMATS

        if Path(paths["roofline"]).suffix.lower().removeprefix(".") not in FORMATS:
            endings = " or ".join(f".{each}" for each in FORMATS)
            raise ValueError(f"--roofline: expected a path that ends in {endings}, received {paths['roofline']!r}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--roofline needs matplotlib; pip install 'tapeprop[viz]'")
    if "flame_graph" in paths and Path(paths["flame_graph"]).suffix.lower() != ".svg":
        raise ValueError(f"--flame-graph: expected a path that ends in .svg, received {paths['flame_graph']!r}")
    for path in paths.values():
        check_writable(path)


def check_writable(path: str) -> None:
    """OSError where a file cannot be written at `path`, which is done beside it and then renamed. What lies there stays as it is."""
    try:
        if not os.path.basename(path):
            raise OSError(errno.EINVAL, "No name of a file")
        if os.path.lexists(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "Is a directory" if os.path.isdir(path) else "Is no regular file")
        os.path.getsize(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise type(error)(f"cannot write {path!r}: {error.strerror}") from None
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(path) or "."):
            pass
    except OSError as error:
        raise type(error)(f"cannot write {path!r}: {error.strerror}") from None


def _read(path: str) -> Profile:
    from tapeprop.profiler.profile import Profile

    try:
        return Profile.load(path)
    except OSError as error:
        raise type(error)(f"cannot read {path!r}: {error.strerror}") from None


# ---- what is printed


def text(profile: Profile, by: str = "instruction", sort: str = "time", top: int | None = TOP) -> str:
    """Table, memory and findings, for people."""
    return "\n".join([str(profile.table(by, sort, top)), *memory_lines(profile), "", str(profile.diagnose())])


def memory_lines(profile: Profile) -> Iterator[str]:
    """The peak of the values in the arena and who holds it; of several tapes that with the highest."""
    tape = max(profile.tapes, key=lambda tape: max(tape.memory.live, default=0), default=None)
    if tape is None or not any(tape.memory.live):
        return
    memory, row = tape.memory, tape.memory.peak_row
    of = f" of {tape.name}" if len(profile.tapes) > 1 else ""
    at = f"{tape.rows[row].phase} {tape.rows[row].op}"
    yield f"peak{of}: {size_text(memory.live[row])} in row {row} ({at}), held by"
    holders = memory.holders
    for block in holders[:HOLDERS]:
        yield f"  {size_text(block.nbytes)} ({share_text(block.nbytes / memory.live[row])})  {one_line(block.label)}"
    if len(holders) > HOLDERS:
        yield f"  and {len(holders) - HOLDERS} more"


def counters_text(profile: Profile) -> str:
    """A line for each counter."""
    width = max(map(len, profile.counters), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in profile.counters.items())


def report(profile: Profile, by: str = "instruction", sort: str = "time", top: int | None = TOP) -> dict[str, Any]:
    """All that is printed, and more, as plain values: seconds, bytes, exact counters."""
    figures = profile.figures(by, sort)[:top]
    return {
        "what": profile.what,
        "created": profile.created,
        "machine": profile.machine,
        "seconds": profile.seconds,
        "compile_seconds": profile.compile_seconds,
        "lowering_seconds": profile.lowering_seconds,
        "dropped": profile.dropped,
        "counters": profile.counters,
        "by": by,
        "figures": [asdict(f) | {"gflops": f.gflops, "gbytes": f.gbytes} for f in figures],
        "tapes": [_tape(tape) for tape in profile.tapes],
        "findings": list(profile.diagnose()),
    }


def _tape(tape: TapeInfo) -> dict[str, Any]:
    memory = tape.memory
    parts = ("arena", "unshared", "parameters", "gradients", "optimizer", "other", "inputs", "scratch")
    return {
        "name": tape.name,
        "sizes": tape.sizes,
        "workers": tape.workers,
        "instructions": len(tape.rows),
        "steps": tape.steps,
        "wall": tape.wall,
        "memory": {
            **{part: getattr(memory, part) for part in parts},
            "peak": max(memory.live, default=0),
            "peak_row": memory.peak_row,
            "holders": [asdict(block) for block in memory.holders],
        },
    }


# ---- comparing


def _compare(args: argparse.Namespace) -> int:
    before, after = map(_read, args.compare)
    found = before.compare(after, args.by)
    print_json(found.to_dict()) if args.json else print(found.table(args.top or None))
    return _verdict(found, args.fail_above)


def _verdict(found: Comparison, limit: float | None) -> int:
    if limit is None:
        return 0
    whole = found.whole
    if math.isnan(whole.low):
        print("tapeprop profile: error: too few steps, or none in common, to say whether it is slower", file=sys.stderr)
        return 1
    if found.slower_by(limit):
        print(
            f"tapeprop profile: a step is slower by more than {100 * limit:.3g} %, and that is more than chance",
            file=sys.stderr,
        )
        return 1
    return 0


# ---- arguments


def _percent(value: str) -> float:
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected per cent, as 5%, received {value!r}") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected at least 0%, received {value!r}")
    return number / 100


__all__ = [
    "add", "add_measuring", "check_outputs", "check_writable", "measure", "prepared", "report", "run", "text",
]  # fmt: skip
