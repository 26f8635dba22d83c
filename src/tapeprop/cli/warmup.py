"""`tapeprop warmup`: compiles the kernels of a graph ahead of time, for the processes that come later."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tapeprop.cli.output import add_json, print_json, seconds_text
from tapeprop.cli.profile import add_measuring, prepared
from tapeprop.cli.source import HELP, guarded


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "warmup",
        help="compile the kernels of a graph ahead of time",
        description="Runs a training step, fit() and predict() of a graph on one batch, which puts its kernels into the cache on disk: "
        "processes that come later start without compiling. Nothing is written besides.",
        epilog="Kernels follow from the graph, the dtype, the loss and the optimizer, most of them not from sizes. A Python file may "
        "define profile_data(), which gives (X, y) or (X, y, loss) of one batch: then that is run.",
    )
    command.add_argument("graphs", nargs="*", default=["digits"], metavar="GRAPH", help=f"{HELP} (default: digits)")
    add_measuring(command)
    add_json(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compiles, and prints how many kernels that took."""
    from tapeprop.runtime import kernel_cache

    before, begin = kernel_cache.info(), time.perf_counter()
    if before.path is None:
        raise ValueError("there is no folder to keep kernels in; name one that can be written with $TAPEPROP_CACHE_DIR")
    for text in args.graphs:
        graph, given, name = prepared(text, _for_demo(args) if text == "digits" else args)
        with guarded(name):
            if given.loss is not None:
                graph.train_step(given.X, given.y, given.loss)
                X, y = (_with_a_rest(value) for value in (given.X, given.y))
                size = len(graph.arrange_inputs(given.X, "X")[0])
                graph.fit(X, y, loss=given.loss, validation_data=(X, y), batch_size=size, verbose=0)
            graph.predict(given.X)
    seconds, after = time.perf_counter() - begin, kernel_cache.info().entries
    compiled = after - before.entries
    if args.json:
        print_json({"folder": str(before.path), "compiled": compiled, "kernels": after, "seconds": seconds})
    else:
        print(f"compiled {compiled} kernels in {seconds_text(seconds)}; {before.path} holds {after}")
    return 0


def _for_demo(args: argparse.Namespace) -> argparse.Namespace:
    """With the optimizer of `tapeprop train digits` where none was named."""
    return argparse.Namespace(**{**vars(args), "optimizer": args.optimizer or "adam"})


def _with_a_rest(value: Any) -> Any:
    """The samples, and some of them again: a last batch of another size may take other kernels, as one of an odd size does."""
    if isinstance(value, Mapping):
        return {name: _with_a_rest(array) for name, array in value.items()}
    if isinstance(value, list | tuple):
        return [_with_a_rest(array) for array in value]
    if value is None:
        return None
    array = np.asarray(value)
    return np.concatenate([array, array[: (len(array) // 2) | 1]])
