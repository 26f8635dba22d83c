"""The table of operators in docs/onnx.md, from the registry of converters: `python tests/onnx_table.py` writes it anew."""

import re
from collections import Counter
from pathlib import Path

import onnx
import onnx_cases

from tapeprop.graph import MergeMode
from tapeprop.interchange.onnx.converters import CONVERTERS, KNOWN
from tapeprop.interchange.onnx.equivalents import BECOMES, MERGES

DOCUMENT = Path(__file__).parent.parent / "docs" / "onnx.md"
HEAD = ["operator", "version", "in a graph", "known beforehand", "cases"]
_PLACE = re.compile(r"(?<=<!-- operators -->\n\n).*?(?=\n\n<!-- end of operators -->)", re.DOTALL)


def counts() -> Counter[str]:
    """{operator: cases of ONNX' own that have it and pass}."""
    found: Counter[str] = Counter()
    for case in onnx_cases.cases().values():
        if not onnx_cases.reason(case):
            found.update({node.op_type for node in case.model.graph.node})
    return found


def rows() -> list[list[str]]:
    """The rows but for the last column."""
    return [
        [f"`{name}`", str(onnx.defs.get_schema(name).since_version), _in_a_graph(name), _known(name)]
        for name in sorted({*CONVERTERS, *KNOWN})
    ]


def _in_a_graph(name: str) -> str:
    if name not in CONVERTERS:
        return "of known numbers alone"
    merge = MergeMode.CHCAT if name == "Concat" else MERGES.get(name)
    return ", ".join(filter(None, [BECOMES.get(name, ""), f"`{merge}`" if merge else ""]))


def _known(name: str) -> str:
    """The inputs whose numbers have to be there when the model is read."""
    if name not in CONVERTERS:
        return "all"
    found = onnx.defs.get_schema(name)
    return ", ".join(f"`{value.name}`" for place, value in enumerate(found.inputs) if CONVERTERS[name].needs(place))


def shown() -> list[list[str]]:
    """The rows as the document has them."""
    match = _PLACE.search(DOCUMENT.read_text(encoding="utf-8"))
    assert match is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in match[0].splitlines()[2:]]


def write() -> None:
    """Puts the table into the document."""
    passed = counts()
    lines = [HEAD, ["---"] * len(HEAD), *([*row, str(passed[row[0].strip("`")] or "")] for row in rows())]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    DOCUMENT.write_text(_PLACE.sub(lambda _: text, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
