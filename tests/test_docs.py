"""What the documents show is run: the Python blocks of README.md and docs/, and the doctests of the sources.

The blocks of one file share a namespace and run in order, in an empty folder. A block that opens with
```python no-run
is left out.
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
BLOCK = re.compile(
    r"^(?P<indent> *)```python(?P<mark>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line of its first statement, code) for each block that is to run."""
    blocks = []
    for match in BLOCK.finditer(text):
        if match["mark"].strip() == "no-run":
            continue
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["code"].splitlines()]
        blocks.append((text.count("\n", 0, match.start("code")) + 1, "\n".join(lines)))
    return blocks


DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if python_blocks(path.read_text(encoding="utf-8"))
)
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_code_in_documents_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in python_blocks((ROOT / document).read_text(encoding="utf-8")):
        # Blank lines before the code make a traceback point into the document.
        exec(compile("\n" * (line - 1) + code, str(ROOT / document), "exec"), namespace)


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module), report=False)
    assert tried > 0
    assert failed == 0


def test_blocks_are_found_where_they_stand() -> None:
    text = (
        "one\n```python\na = 1\n\nb = 2\n```\n```python no-run\nc\n```\n"
        "* item\n  ```python\n  d = 3\n  ```\n```sh\nls\n```\n"
    )
    assert python_blocks(text) == [(3, "a = 1\n\nb = 2"), (12, "d = 3")]
