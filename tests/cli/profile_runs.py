"""`tapeprop profile` as tests of it run it: files in an empty folder, commands in this process."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapeprop import cli

NETWORK = """
import numpy as np
import tapeprop as tp
from tapeprop.layers import Dense

def network():
    first = tp.LayerNode(Dense(4, 8), name="first")
    head = tp.LayerNode(Dense(8, 3), name="head")
    return tp.LayerGraph({first: [head], head: []}, root=first, term=head, seed=0)
"""


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty working directory; what running a file changes in the process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    before = set(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        if name not in before and not name.startswith("tapeprop") and _is_written_here(module):
            del sys.modules[name]


def _is_written_here(module: object) -> bool:
    path = getattr(module, "__file__", None)
    return isinstance(path, str) and (not Path(path).is_absolute() or "pytest-" in path or "examples" in path)


def write(text: str, name: str = "net.py") -> str:
    """Writes a file of Python; gives its name."""
    Path(name).write_text(textwrap.dedent(text), encoding="utf-8")
    return name


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `tapeprop profile ...`."""
    code = cli.main(["profile", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def reported(capsys, *argv: str) -> dict:
    """What `tapeprop profile ... --json` prints."""
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0, err
    return json.loads(out)
