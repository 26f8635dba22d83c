"""`tapeprop summary`: the nodes of a network, their shapes and weights, and its instruction tape."""

from __future__ import annotations

import argparse
from typing import Any

from tapeprop.cli.feed import shape as shape_argument
from tapeprop.cli.output import add_json, print_json
from tapeprop.cli.source import add_graph, build, load


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "summary",
        help="show the nodes of a network",
        description="Shows the nodes of the demo's network, of a graph saved with graph.save(), or of one that Python code "
        "defines: a file (examples/resnet20.py), or something in it or in a module (file.py:name, module:name).",
    )
    add_graph(command)
    command.add_argument(
        "--input-shape", type=shape_argument, metavar="N,C,H,W", help="shape of the input, as 32,1,8,8"
    )
    command.add_argument("--tape", action="store_true", help="list the instructions as well")
    add_json(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the summary."""
    source = load(args.graph)
    graph, shape = source.graph, args.input_shape or source.input_shape
    weights, biases = graph.param_size
    if args.json:
        report = {
            "nodes": [str(name) for name in graph.labels.values()],
            "weights": weights,
            "biases": biases,
            "layers": graph.layer_count,
        }
        if shape is not None:
            report |= {"input_shape": shape, "output_shape": graph.out_shape(shape)}
        if args.tape:
            graph = build(graph, shape)
            report["tape"] = list(graph.tape)
        print_json(report)
        return 0
    print(graph.summary(shape))
    if args.tape:
        graph = build(graph, shape)
        print()
        print(graph.tape)
    return 0
