"""The fenced blocks of a Markdown text."""

from __future__ import annotations

import re
from typing import NamedTuple

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<mark>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """language and mark: the words behind the opening fence, the first and the rest. line: of the first line inside."""

    language: str
    mark: str
    line: int
    code: str


def fenced(text: str) -> list[Block]:
    """The blocks with a language, in order; those in a list item without its indent."""
    blocks = []
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(f"{line[indent:]}\n" for line in match["code"].splitlines())
        line = text.count("\n", 0, match.start("code")) + 1
        blocks.append(Block(match["language"], match["mark"].strip(), line, code))
    return blocks
