"""Whether what was folded into weights is still what the parameters say: see `compiler.fold`."""

from __future__ import annotations

from tapeprop.compiler.fold import FOLD
from tapeprop.ir import Parameter, Program
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.state import cell

Versions = tuple[int | None, ...]


class Folding:
    """The buffers that the span "fold" of a program reads, and their versions when it last ran.

    Whatever writes parameters is seen: a run of any graph, assign(), and what a caller does to a view that `value` handed out, for as
    long as such a view is alive the span runs each time.
    """

    def __init__(self, program: Program):
        read = [t.source for s in program.spans if s.name == FOLD for call in s.instructions for t in call.operands]
        self.buffers: list[Buffer] = list(
            dict.fromkeys(cell(p).segment.values for p in read if isinstance(p, Parameter))
        )
        self.made_of: Versions = (None,)

    def versions(self) -> Versions:
        """What to note in `made_of` once the span has run; to be asked for before it runs."""
        return tuple(buffer.version for buffer in self.buffers)

    def stands(self, versions: Versions) -> bool:
        """Whether the span need not run again."""
        return None not in versions and versions == self.made_of
