"""`tapeprop plot`: draws a network or its instruction tape."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tapeprop.cli.feed import shape as shape_argument
from tapeprop.cli.source import add_graph, build, load

WHAT = ("graph", "tape")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "plot",
        help="draw a network or its instruction tape",
        description="Draws the demo's network, a graph saved with graph.save(), or one that Python code defines: to a file in "
        "the language of its ending (.svg; .mmd and .md, Mermaid; .dot and .gv, Graphviz), or as Mermaid to stdout.",
    )
    add_graph(command)
    command.add_argument(
        "--input-shape", type=shape_argument, metavar="N,C,H,W", help="shape of the input, as 32,1,8,8"
    )
    command.add_argument("--what", choices=WHAT, default="graph", help="the nodes or the instructions (default: graph)")
    command.add_argument("-o", "--output", metavar="PATH", help="the file to write")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws; the drawing or, with a path, nothing goes to stdout."""
    from tapeprop.graph.drawing.files import check_ending

    if args.output is not None:
        check_ending(args.output)  # before anything is built
    source = load(args.graph)
    graph, shape = source.graph, args.input_shape or source.input_shape
    if args.what == "graph":
        drawing = graph.plot(args.output, input_shape=shape)
    else:
        drawing = build(graph, shape).plot(args.output, "tape")
    if args.output is None:
        print(drawing, end="")
    else:
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


__all__ = ["add", "run"]
