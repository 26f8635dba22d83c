"""`tapeprop bench`: runs the benchmarks of a source checkout."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tapeprop.cli.output import add_json, print_json

#: What runs when nothing is named, and with which arguments; in this order.
SUITE = {
    "train": (), "infer": (), "memory": (), "scaling": (), "graphs": (), "formula": (), "profiler": (), "infrastructure": ("--cold",),
}  # fmt: skip
#: The folder of the programs in a source checkout.
FOLDER = Path(__file__).resolve().parents[3] / "bench"


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "bench",
        help="time training and inference; memory, scaling, graphs",
        description="Runs the programs of bench/: train and infer, whole steps and outputs beside torch's and JAX's; "
        "memory, what training holds; scaling, how steps grow with batch and depth; graphs, what building, edits, a "
        "second loss and threads cost; formula, a network written out scalar by scalar; profiler, what profiling costs; "
        "infrastructure, what surrounds the arithmetic. Together some ten minutes. Needs a source checkout, and torch for the first two.",
    )
    add_json(command)
    command.add_argument("program", nargs="?", choices=[*SUITE], help="just this one (default: all)")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="what follows goes to the program, as --help")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the programs one after another; the exit code of the first that fails."""
    chosen = {args.program: args.arguments} if args.program else SUITE
    if not all((FOLDER / f"{name}.py").is_file() for name in chosen):
        raise ValueError(f"the benchmarks are not installed with the package: run this in a source checkout ({FOLDER})")
    source = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in chosen.items():
            command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
            path = Path(folder) / f"{name}.json"
            if args.json:
                command += ["--output", str(path)]
            done = subprocess.run(command, env=environment, stdout=sys.stderr if args.json else None, check=False)
            if done.returncode:
                return done.returncode
            if args.json and path.exists():
                found[name] = json.loads(path.read_text(encoding="utf-8"))
    if args.json:
        print_json(found)
    return 0
