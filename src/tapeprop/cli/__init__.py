"""The command line: `tapeprop <command> ...`, also as `python -m tapeprop`.

Exit codes: 0 done; 1 it failed, with the reason on stderr; 2 wrong usage; 130 interrupted; 141 the reader of the output
has gone. Figures go to stdout, progress and remarks to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tapeprop.cli import bench, cache, doctor, plot, profile, summary, train, warmup

COMMANDS = (train, summary, plot, profile, bench, warmup, doctor, cache)
WRONG_USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Wrong usage is told in one line: the synopsis of a command with many options would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    from tapeprop import __version__

    top = _Parser(prog="tapeprop", description="Neural networks as graphs, compiled into one instruction tape.")
    top.add_argument("--version", action="version", version=f"tapeprop {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for module in COMMANDS:
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (that of the process by default) and gives the exit code."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as error:  # argparse has printed help or what is wrong
        return int(error.code or 0)
    try:
        code: int = args.run(args)
        if sys.stdout is not None:  # None where the caller closed it, and then nobody misses what was printed
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; it must find something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except MemoryError as error:
        print(f"tapeprop {args.command}: error: out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"tapeprop {args.command}: error: {error}", file=sys.stderr)
        return 1
