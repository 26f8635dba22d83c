"""A program of scalar operations as data: how it is written down, cut into vector instructions, and differentiated.

Values are numbered: first the elements of the operand vectors, one vector behind the other, then the results of the
nodes. Operations of one kind whose operands are ready at the same depth stand side by side: they become one vector
instruction over a stretch of the `bank`, the vector of all node results (superword-level parallelism, Larsen and
Amarasinghe 2000, on a whole graph instead of a basic block). An operand of such an instruction runs through memory
evenly where the formula is regular, and through a table of positions where it is not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapeprop.ops.elementwise.spec import slope_of
from tapeprop.ops.scalar import Scalar, constant, input_scalar, make, ordered, substitute
from tapeprop.ops.scalar.node import constant_value

#: Operands of a vector instruction, and nodes of its expression: what goes beyond is computed in steps.
MOST_INPUTS, MOST_NODES = 8, 96
#: Sums of more terms than this run through memory instead of through registers.
LONGEST_EXPRESSION_SUM = 4


@dataclass(frozen=True)
class Kind:
    """What a node computes: an expression of `count` inputs, or where `root` is None their sum from left to right.

    formula: as in the attributes of "elementwise", where the expression is one of the table.
    """

    root: Scalar | None
    count: int
    formula: tuple | None = None


@dataclass(frozen=True)
class Column:
    """Where an operand of a vector instruction lies.

    space: the operand vector, or -1 for the bank. start, stride: in elements, where it runs evenly. table: the place of
    its positions in the block's table, or None.
    """

    space: int
    start: int
    stride: int
    table: int | None = None


@dataclass(frozen=True)
class Step:
    """One vector instruction: bank[start : start + size] = root(columns), or the ordered sum of `terms` in one column."""

    root: Scalar | None
    columns: tuple[Column, ...]
    start: int
    size: int
    terms: int = 0


class Block:
    """A program of scalar operations.

    sizes: the lengths of the operand vectors. kinds: what nodes may compute. nodes: (number of its kind, the values that
    it takes) of each, operands first. outputs: the values that the block gives, at least one. Immutable.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kinds: Sequence[Kind],
        nodes: Sequence[tuple[int, tuple[int, ...]]],
        outputs: Sequence[int],
    ):
        self.sizes, self.kinds = tuple(sizes), tuple(kinds)
        self.nodes, self.outputs = list(nodes), list(outputs)
        self.first = sum(self.sizes)  # the value that the first node gives

    @functools.cached_property
    def plan(self) -> Plan:
        """The vector instructions."""
        return _Planner(self).plan()


@dataclass(frozen=True)
class Plan:
    """A block as vector instructions.

    steps: in order. position: of each node in the bank. size: of the bank. output: the column of the outputs there.
    table: int32, the positions that irregular columns read. literals: the numbers that stand in some expressions; the
    vector of them is the operand after the block's own.
    """

    steps: list[Step]
    position: np.ndarray
    size: int
    output: Column
    table: np.ndarray
    literals: np.ndarray


# ---- from scalars to vectors


class _Planner:
    """Lowers a block once: complicated kinds to simple ones, then nodes to steps."""

    def __init__(self, block: Block):
        self.block = block
        self.kinds = list(block.kinds)
        self.known = {kind: k for k, kind in enumerate(self.kinds)}
        self.nodes: list[tuple[int, tuple[int, ...]]] = []  # simple ones
        self.place: list[int] = []  # value of the block -> value here
        self.literals: dict[str, int] = {}  # by hexadecimal text, which tells -0 from 0
        self.table: list[np.ndarray] = []
        self.table_size = 0

    def plan(self) -> Plan:
        block = self.block
        self.place = list(range(block.first))
        simple = [_is_simple(kind) for kind in block.kinds]
        for number, args in block.nodes:
            places = tuple([self.place[a] for a in args])
            if simple[number]:
                self.nodes.append((number, places))
                self.place.append(block.first + len(self.nodes) - 1)
            else:
                self.place.append(self._in_parts(block.kinds[number], places))
        outputs = [self._inside(self.place[value]) for value in block.outputs]
        steps = self._steps()
        where = np.array([self.position[value - block.first] for value in outputs], np.int64)
        output = self._column(-1, where)
        final = [self.place[block.first + i] for i in range(len(block.nodes))]
        position = np.array([self.position[v - block.first] if v >= block.first else -1 for v in final], np.int64)
        table = np.concatenate(self.table) if self.table else np.zeros(1, np.int64)
        literals = np.array([float.fromhex(text) for text in self.literals] or [0.0])
        return Plan(steps, position, len(self.nodes), output, table.astype(np.int32), literals)

    def _node(self, kind: Kind, args: tuple[int, ...]) -> int:
        number = self.known.setdefault(kind, len(self.kinds))
        if number == len(self.kinds):
            self.kinds.append(kind)
        self.nodes.append((number, args))
        return self.block.first + len(self.nodes) - 1

    def _inside(self, value: int) -> int:
        """The value as a node's: an element of an operand is copied."""
        return self._node(COPY, (value,)) if value < self.block.first else value

    def _in_parts(self, kind: Kind, args: tuple[int, ...]) -> int:
        if kind.root is None or _is_left_sum(kind.root, kind.count):
            spaces = {self._space(a) for a in args}
            return self._node(Kind(None, len(args)), args if len(spaces) == 1 else tuple(map(self._inside, args)))
        values: dict[Scalar, int] = {input_scalar(k): a for k, a in enumerate(args)}
        for node in ordered([kind.root]):
            if node.args and node.op not in CONDITIONS:
                root, inner = _one_step(node)
                values[node] = self._node(Kind(root, len(inner)), tuple([values[a] for a in inner]))
        return values[kind.root]

    def _space(self, value: int) -> int:
        if value >= self.block.first:
            return -1
        return int(np.searchsorted(self._ends, value, side="right"))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.block.sizes)

    def _steps(self) -> list[Step]:
        """Nodes side by side: of one skeleton, at one depth, each operand from one vector."""
        first, nodes = self.block.first, self.nodes
        skeletons = [_skeleton(kind) for kind in self.kinds]
        level = np.zeros(first + len(nodes), np.int64).tolist()
        groups: dict[tuple, list[int]] = {}
        spaces = [*np.repeat(np.arange(len(self.block.sizes)), self.block.sizes).tolist(), *[-1] * len(nodes)]
        for i, (number, args) in enumerate(nodes):
            depth = max([level[a] for a in args], default=0) + 1
            level[first + i] = depth
            key = (depth, skeletons[number][0], self.kinds[number].count, *[spaces[a] for a in args])
            groups.setdefault(key, []).append(i)
        self.position = np.zeros(len(nodes), np.int64)
        steps, start = [], 0
        starts = np.concatenate([[0], self._ends[:-1]]) if self.block.sizes else np.zeros(1, np.int64)
        for key in sorted(groups, key=lambda key: key[0]):
            members = groups[key]
            self.position[members] = np.arange(start, start + len(members))
            taken = np.array([nodes[i][1] for i in members], np.int64).reshape(len(members), -1)
            inside = taken >= first
            where = np.where(inside, self.position[np.where(inside, taken - first, 0)], taken)
            found = [spaces[a] for a in nodes[members[0]][1]]
            where -= np.array([0 if s < 0 else starts[s] for s in found], np.int64)
            steps.append(self._step(key, members, skeletons, found, where, start))
            start += len(members)
        return steps

    def _step(self, key, members, skeletons, spaces, where: np.ndarray, start: int) -> Step:
        skeleton, size = key[1], len(members)
        if skeleton is None:
            flat = self._column(spaces[0], where.T.reshape(-1), even=False)
            return Step(None, (flat,), start, size, where.shape[1])
        columns = [self._column(space, where[:, k]) for k, space in enumerate(spaces)]
        numbers = np.array([skeletons[self.nodes[i][0]][1] for i in members]).reshape(size, -1)
        count = len(spaces)
        baked: dict[int | Scalar, Scalar | float] = {}
        for k in range(numbers.shape[1]):
            if np.unique(numbers[:, k].view(np.int64)).size == 1:
                baked[count + k] = constant(float(numbers[0, k]))
                continue
            baked[count + k] = input_scalar(len(columns))
            places = [self.literals.setdefault(float(v).hex(), len(self.literals)) for v in numbers[:, k]]
            columns.append(self._column(len(self.block.sizes), np.array(places)))
        return Step(substitute(skeleton, baked) if baked else skeleton, tuple(columns), start, size)

    def _column(self, space: int, where: np.ndarray, even: bool = True) -> Column:
        if even:
            steps = np.diff(where)
            if steps.size == 0 or (steps == steps[0]).all():
                return Column(space, int(where[0]), int(steps[0]) if steps.size else 1)
        place = self.table_size
        self.table.append(where)
        self.table_size += where.size
        return Column(space, 0, 0, place)


CONDITIONS = ("less", "less_equal", "equal")
COPY = Kind(input_scalar(0), 1)


def _is_simple(kind: Kind) -> bool:
    if kind.root is None:
        return False  # its terms may have to be brought together
    if kind.count > LONGEST_EXPRESSION_SUM and _is_left_sum(kind.root, kind.count):
        return False
    return kind.count <= MOST_INPUTS and len(ordered([kind.root])) <= MOST_NODES


@functools.lru_cache(maxsize=256)
def _is_left_sum(root: Scalar, count: int) -> bool:
    """Whether root is ((input 0 + input 1) + input 2) + ..."""
    for k in reversed(range(1, count)):
        if root.op != "add" or root.args[1] is not input_scalar(k):
            return False
        root = root.args[0]
    return count > 1 and root is input_scalar(0)


def _one_step(node: Scalar) -> tuple[Scalar, list[Scalar]]:
    """One primitive as an expression of its own, conditions and constants in it, and the nodes that are its inputs."""
    inner: list[Scalar] = []

    def reduced(part: Scalar) -> Scalar:
        if part.op == "const":
            return part
        if part.op in CONDITIONS:
            return make(part.op, *map(reduced, part.args))
        if part not in inner:
            inner.append(part)
        return input_scalar(inner.index(part))

    return make(node.op, *map(reduced, node.args)), inner


@functools.lru_cache(maxsize=65536)
def _skeleton(kind: Kind) -> tuple[Scalar | None, tuple[float, ...]]:
    """(the expression with inputs from `count` on in the place of its constants, the constants)."""
    if kind.root is None:
        return None, ()
    numbers = [node for node in ordered([kind.root]) if node.op == "const"]
    if not numbers:
        return kind.root, ()
    places: dict[int | Scalar, Scalar | float] = {n: input_scalar(kind.count + k) for k, n in enumerate(numbers)}
    return substitute(kind.root, places), tuple([constant_value(node) for node in numbers])


# ---- the gradient of a block is a block


@dataclass(frozen=True)
class Reverse:
    """block: computes gradients from the vectors of the forward block, its bank, and what flows into its results.

    lengths: how many of its outputs belong to each wanted operand, in order.
    """

    block: Block
    lengths: tuple[int, ...]


def reverse(block: Block, wanted: Sequence[bool], flows: tuple[bool, bool]) -> Reverse:
    """The block whose outputs are the gradients of the wanted operand vectors, one behind the other.

    Its operands: those of `block`, its bank, then what flows into the outputs and into the bank, as far as `flows` says.
    Contributions to a value are added latest use first, as everywhere (`compiler.gradient`).
    """
    return _Reversal(block, wanted, flows).run()


class _Reversal:
    def __init__(self, block: Block, wanted: Sequence[bool], flows: tuple[bool, bool]):
        self.block, self.wanted, self.flows = block, wanted, flows
        self.kinds: dict[Kind, int] = {}
        self.nodes: list[tuple[int, tuple[int, ...]]] = []
        bank = block.plan.size
        extra = [len(block.outputs)] * flows[0] + [bank] * flows[1]
        self.sizes = [*block.sizes, bank, *extra]
        self.bank, self.first = block.first, sum(self.sizes)

    def run(self) -> Reverse:
        block, position = self.block, self.block.plan.position
        contributions: dict[int, list[int]] = {}
        start = self.bank + block.plan.size
        if self.flows[0]:
            for k, value in enumerate(block.outputs):
                contributions.setdefault(value, []).append(start + k)
            start += len(block.outputs)
        if self.flows[1]:
            for i in range(len(block.nodes)):
                if position[i] >= 0:
                    contributions.setdefault(block.first + i, []).append(start + int(position[i]))
        active = self._active()
        values = [*range(block.first), *(self.bank + position).tolist()]
        for i in reversed(range(len(block.nodes))):
            value = block.first + i
            if value in contributions and active[value]:
                self._node(i, self._total(contributions.pop(value)), contributions, active, values)
        outputs: list[int] = []
        lengths = []
        ends = list(itertools.accumulate(block.sizes, initial=0))
        zero: int | None = None
        for first, end, want in zip(ends, ends[1:], self.wanted):
            if not want:
                continue
            for value in range(first, end):
                if value in contributions:
                    outputs.append(self._total(contributions[value]))
                    continue
                if zero is None:
                    zero = self._add(Kind(constant(0.0), 0), ())
                outputs.append(zero)
            lengths.append(end - first)
        return Reverse(Block(self.sizes, list(self.kinds), self.nodes, outputs), tuple(lengths))

    def _active(self) -> list[bool]:
        """Whether each value depends on a wanted operand."""
        found = np.repeat(list(map(bool, self.wanted)), self.block.sizes).tolist()
        for _, args in self.block.nodes:
            found.append(any(found[a] for a in args))
        return found

    def _node(self, i: int, flow: int, contributions: dict[int, list[int]], active, values: list[int]) -> None:
        number, args = self.block.nodes[i]
        kind = self.block.kinds[number]
        for k, value in enumerate(args):
            if not active[value]:
                continue
            slope = _slope(kind, k)
            if slope is None:
                continue
            root, used = slope
            if root is input_scalar(0) and used == (kind.count + 1,):  # the gradient passes as it is
                contributions.setdefault(value, []).append(flow)
                continue
            own = values[self.block.first + i]
            taken = tuple([flow if u > kind.count else own if u == kind.count else values[args[u]] for u in used])
            contributions.setdefault(value, []).append(self._add(Kind(root, len(used)), taken))

    def _add(self, kind: Kind, args: tuple[int, ...]) -> int:
        self.nodes.append((self.kinds.setdefault(kind, len(self.kinds)), args))
        return self.first + len(self.nodes) - 1

    def _total(self, parts: list[int]) -> int:
        if len(parts) == 1:
            return parts[0]
        return self._add(Kind(_sum(len(parts)), len(parts)), tuple(parts))


@functools.cache
def _sum(count: int) -> Scalar | None:
    """The sum of `count` inputs as an expression, None where it is too long for one."""
    if count > LONGEST_EXPRESSION_SUM:
        return None
    return functools.reduce(lambda a, b: a + b, map(input_scalar, range(count)))


def _slope(kind: Kind, k: int) -> tuple[Scalar, tuple[int, ...]] | None:
    """As `elementwise.spec.slope_of`, for a sum as well."""
    if kind.root is None:
        return input_scalar(0), (kind.count + 1,)
    return slope_of(kind.root, kind.formula, k, kind.count)
