"""Files that are written whole or not at all, and told about in one line where they cannot be."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

__all__ = ["whole_file", "write_text"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, binary: bool = False, durable: bool = False) -> Iterator[IO]:
    """A file to write to, UTF-8 where it is not `binary`; it takes the place of `path` when all has been written.

    Until then it has another name in the same folder; where writing ends with an exception nothing is left of it and what was at
    `path` is as before. durable: it lies on the disk before it takes that place, or a crash could leave the name without contents.
    A link is followed. What is no file, as /dev/stdout, is written to as it is.
    OSError, of the class that the system's error has, which names `path`.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    special = os.path.exists(target) and not os.path.isfile(target)
    place = target if special else os.path.join(os.path.dirname(target), f".tapeprop-{secrets.token_hex(8)}.tmp")
    mode, encoding, newline = ("b", None, None) if binary else ("", "utf-8", "\n")
    try:
        with open(place, ("w" if special else "x") + mode, encoding=encoding, newline=newline) as file:
            yield file
            if durable and not special:
                file.flush()
                os.fsync(file.fileno())
        if not special:
            os.replace(place, target)
    except BaseException as error:
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(place)
        if isinstance(error, OSError) and error.strerror:
            raise type(error)(error.errno, error.strerror, name) from None
        raise


def write_text(path: str | os.PathLike[str], parts: Iterable[str]) -> Path:
    """Writes parts one after another to a file, whole or not at all; its path. OSError, which names the path, where that fails."""
    with whole_file(path) as file:
        file.writelines(parts)
    return Path(path)
