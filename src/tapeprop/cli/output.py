"""What commands share: tables for people, JSON for programs, and arguments that are whole numbers."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from tapeprop.profiler.text import seconds_text, size_text

__all__ = ["add_json", "print_json", "seconds_text", "size_text", "table", "whole_number"]


def add_json(command: argparse.ArgumentParser) -> None:
    """Adds --json to a command that prints figures."""
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def print_json(value: Any) -> None:
    """One JSON object; NaN and infinities become null, since JSON has neither."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Aligned columns; those whose numbers stand in `left` to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def whole_number(least: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number of at least `least`."""

    def read(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, received {value!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, received {value}")
        return number

    return read
