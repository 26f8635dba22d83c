"""`tapeprop train digits`: trains a small network on real data and says how well it does and where the time went."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tapeprop.cli.output import add_json, print_json, seconds_text, table, whole_number

if TYPE_CHECKING:
    from tapeprop.profiler.tables import Figures

SLOWEST = 5


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "train",
        help="train a network on data that ships inside",
        description="Trains a network with a shortcut and a concatenation on 1,438 of the 1,797 handwritten digits "
        "that ship inside, and tests it on the other 359.",
    )
    command.add_argument("data", choices=["digits"], help="what to train on")
    command.add_argument(
        "--epochs", type=whole_number(1), default=15, metavar="N", help="passes over the data (default: 15)"
    )
    command.add_argument(
        "--batch-size", type=whole_number(1), default=32, metavar="N", help="samples per step (default: 32)"
    )
    command.add_argument("--lr", type=_rate, default=0.003, metavar="X", help="learning rate of Adam (default: 0.003)")
    command.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="of weights, order and dropout (default: 0)"
    )
    command.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="threads (default: the CPUs that may be used)"
    )
    command.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="(default: float32)")
    command.add_argument("--save", metavar="PATH", help="write the trained graph to this file")
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="no progress")
    shown.add_argument(
        "--live", action="store_true", help="show speed, loss, memory and the hottest instructions while it trains"
    )
    command.add_argument(
        "--at-least", type=_part, metavar="X", help="exit with 1 where the held-out accuracy is below this, as 0.98"
    )
    add_json(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, reports, and gives the exit code."""
    report = train(args)
    if args.json:
        print_json(report)
    else:
        print(text(report))
    if args.at_least is not None and report["accuracy"] < args.at_least:
        print(
            f"tapeprop train: the held-out accuracy {report['accuracy']:.4f} is below {args.at_least}", file=sys.stderr
        )
        return 1
    return 0


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Trains as the arguments say; the figures."""
    from tapeprop.cli.digits import digits_network
    from tapeprop.datasets import digits, train_test_split
    from tapeprop.losses import CrossEntropy
    from tapeprop.optimizers import Adam
    from tapeprop.runtime.linker import compile_seconds
    from tapeprop.schedules import CosineAnnealingLR

    progress = _progress(args)
    X_train, X_test, y_train, y_test = train_test_split(*digits(), seed=0)
    loss = CrossEntropy()
    start, compiled_before = time.perf_counter(), compile_seconds()
    graph = digits_network(args.seed)
    graph.build((args.batch_size, *X_train.shape[1:]), dtype=args.dtype, workers=args.workers)
    build_seconds = time.perf_counter() - start
    history = graph.fit(
        X_train,
        y_train,
        loss=loss,
        optimizer=Adam(args.lr),
        epochs=args.epochs,
        batch_size=args.batch_size,
        validation_data=(X_test, y_test),
        seed=args.seed,
        schedule=CosineAnnealingLR(args.epochs),
        callbacks=progress,
        verbose=0,
    )
    seconds, compiled = sum(history.seconds), compile_seconds() - compiled_before
    result = graph.evaluate(X_test, y_test, loss=loss)
    profile = graph.profile(X_train[: args.batch_size], y_train[: args.batch_size], loss, repeats=20)
    report = {
        "data": args.data,
        "train_samples": len(X_train),
        "test_samples": len(X_test),
        "parameters": sum(graph.param_size),
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "accuracy": result["accuracy"],
        "loss": result["loss"],
        "train_loss": history.loss[-1],
        "prepare_seconds": build_seconds + history.compile_seconds,
        "compile_seconds": compiled,
        "train_seconds": seconds,
        "images_per_second": len(X_train) * args.epochs / seconds,
        "slowest": slowest(profile.figures()),
    }
    if args.save:
        report["saved"] = _save(graph, args.save)
    return report


def _progress(args: argparse.Namespace) -> list[Any]:
    """The callbacks that show it. RuntimeError where a library is missing that was asked for."""
    from tapeprop.callbacks import Live, Progress

    if args.quiet:
        return []
    if not args.live:
        return [Progress(stream=sys.stderr)]
    try:
        return [Live(stream=sys.stderr)]
    except ImportError as error:
        raise RuntimeError(str(error)) from None


def slowest(rows: Iterable[Figures], count: int = SLOWEST) -> list[dict[str, Any]]:
    """The `count` instructions that took the longest, longest first."""
    names = ("phase", "op", "layer", "seconds", "share")
    first = sorted(rows, key=lambda row: -row.seconds)[:count]
    return [{"row": row.rows[0][1]} | {name: getattr(row, name) for name in names} for row in first]


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"held-out accuracy {report['accuracy']:.4f} on {report['test_samples']} digits that it was not trained on "
        f"(loss {report['loss']:.4f})",
        f"trained {report['parameters']:,} weights for {report['epochs']} epochs of {report['train_samples']:,} images "
        f"in {report['train_seconds']:.2f} s: {report['images_per_second']:,.0f} images/s",
        f"before that: {report['prepare_seconds']:.2f} s of preparation, {report['compile_seconds']:.2f} s of it "
        f"compiling kernels" + (" (all of them were in the cache)" if not report["compile_seconds"] else ""),
        "",
        f"the {len(report['slowest'])} instructions that took the longest in a step of {report['batch_size']} images:",
        table(
            ("row", "phase", "op", "layer", "time", "share"),
            [
                (str(r["row"]), r["phase"], r["op"], r["layer"], seconds_text(r["seconds"]), f"{r['share']:.1%}")
                for r in report["slowest"]
            ],
            left=(1, 2, 3),
        ),
    ]
    if "saved" in report:
        lines += ["", f"saved to {report['saved']}"]
    return "\n".join(lines)


def _save(graph: Any, path: str) -> str:
    graph.save(path)
    return path


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, received {value!r}") from None


def _rate(value: str) -> float:
    number = _number(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, received {value}")
    return number


def _part(value: str) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, received {value}")
    return number


__all__ = ["add", "run", "slowest", "text", "train"]
