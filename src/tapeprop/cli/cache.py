"""`tapeprop cache`: the folder of compiled kernels."""

from __future__ import annotations

import argparse
from typing import Any

from tapeprop.cli.output import add_json, print_json, size_text


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "cache",
        help="show or clear the compiled kernels",
        description="Shows or clears the folder of compiled kernels ($TAPEPROP_CACHE_DIR names another).",
    )
    actions = command.add_subparsers(dest="action", metavar="action", required=True)
    shown = actions.add_parser("info", help="the folder, how many kernels it holds and their size")
    add_json(shown)
    shown.set_defaults(run=show)
    cleared = actions.add_parser("clear", help="delete the compiled kernels; they are made again when they are needed")
    add_json(cleared)
    cleared.set_defaults(run=clear)


def show(args: argparse.Namespace) -> int:
    """Prints folder, number and size."""
    from tapeprop.runtime import kernel_cache

    found = kernel_cache.info()
    if args.json:
        path = None if found.path is None else str(found.path)
        print_json({"folder": path, "kernels": found.entries, "bytes": found.bytes})
    elif found.path is None:
        print("no folder: kernels are kept in memory only; name one with $TAPEPROP_CACHE_DIR")
    else:
        print(f"{found.path}: {found.entries} kernels, {size_text(found.bytes)}")
    return 0


def clear(args: argparse.Namespace) -> int:
    """Deletes the kernels and prints how many there were."""
    from tapeprop.runtime import kernel_cache

    count = kernel_cache.clear()
    if args.json:
        print_json({"deleted": count})
    else:
        print(f"deleted {count} kernels")
    return 0
