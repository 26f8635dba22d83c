"""What the documents show is run: the Python blocks of README.md and docs/, and the doctests of the sources.

The blocks of one file share a namespace and run in order, in an empty folder. One that opens with ```python no-run is
left out. What stands in a block ```text output is what the Python block before it prints, but for the numbers in names
of buffers (they count up in a process), runs of spaces, and what `...` stands for.
"""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest
from documents import Block, fenced
from test_house import FLOORS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


def runs(block: Block) -> bool:
    return block.language == "python" and "no-run" not in block.mark.split()


def is_output(block: Block) -> bool:
    return (block.language, block.mark) == ("text", "output")


def blocks_of(document: Path) -> list[Block]:
    return fenced((ROOT / document).read_text(encoding="utf-8"))


def normal(text: str) -> str:
    """Text without what differs from process to process."""
    lines = [" ".join(re.sub(r"\b([a-z]+)\.\d+(?=[+\[])", r"\1.0", line).split()) for line in text.splitlines()]
    return "\n".join(lines).strip()


def agrees(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in re.split(r"\s*\.\.\.\s*", normal(shown)))
    return re.fullmatch(pattern, normal(printed), re.DOTALL) is not None


DOCUMENTS = [
    path.relative_to(ROOT)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(map(runs, blocks_of(path)))
]
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
    printed = ""
    for block in blocks_of(document):
        if runs(block):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                # Blank lines before the code make a traceback point into the document.
                exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / document), "exec"), namespace)
            printed = out.getvalue()
        elif is_output(block) and not agrees(block.code, printed):
            pytest.fail(f"{document}:{block.line}: the code before it prints\n{printed}", pytrace=False)


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    for target in targets:
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_sources_that_documents_name_are_there(document: Path) -> None:
    """`compiler/plan.py` stands for a file of the package, `tests/...` and others for one of the project."""
    for name in set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", document.read_text(encoding="utf-8"))):
        assert (ROOT / name).exists() or (SOURCE / "tapeprop" / name).exists(), f"{document.name} names {name}"


def test_the_table_of_floors_is_the_one_of_the_house() -> None:
    text = (ROOT / "docs" / "internals" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(
        r"^\| (`[^|]*`) \|", text[text.index("| floor |") : text.index("\n\n", text.index("| floor |"))], re.M
    )
    shown = [set(re.findall(r"`(\w+)`", cell)) for cell in cells]
    there = {path.stem for path in (SOURCE / "tapeprop").iterdir()}
    kept = [{unit for unit in floor if unit in there and unit != "__main__"} for floor in FLOORS]
    assert shown == [floor for floor in kept if floor]


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module), report=False)
    assert tried > 0
    assert failed == 0


def test_blocks_are_found_where_they_stand() -> None:
    text = (
        "one\n```python\na = 1\n\nb = 2\n```\n```python no-run\nc\n```\n"
        "* item\n  ```python\n  d = 3\n  ```\n```text output\n3\n```\n"
    )
    assert fenced(text) == [
        Block("python", "", 3, "a = 1\n\nb = 2\n"),
        Block("python", "no-run", 8, "c\n"),
        Block("python", "", 12, "d = 3\n"),
        Block("text", "output", 15, "3\n"),
    ]
    assert [runs(block) for block in fenced(text)] == [True, False, True, False]
    assert [is_output(block) for block in fenced(text)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  1\n", "a 1", True),
        ("a 1", "a 2", False),
        ("row ... end", "row\n1\n2\nend", True),
        ("row ... end", "row\n1\n2", False),
        ("parameters.3+0(3)", "parameters.117+0(3)", True),
        ("parameters.3+0(3)", "parameters.3+64(3)", False),
        ("1.5", "1.25", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same
