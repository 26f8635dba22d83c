"""From a trace function to programs: forward, backward, and the whole training step.

A trace function takes the input tensors and records the network; see `TraceFunction`. The batch stays open where the network allows it
(`N` in the tensors' shapes): then one lowering serves every batch size, and only planning and encoding are done again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.compiler.gradient import FLOATS, gradients
from tapeprop.compiler.layout import BatchLanes, batch_lanes
from tapeprop.compiler.passes import Lanes, optimize
from tapeprop.compiler.recompute import recompute
from tapeprop.compiler.snapshots import Snapshots
from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import (
    Dim,
    Gradient,
    Instruction,
    Parameter,
    Placeholder,
    Program,
    Region,
    Shape,
    Span,
    Store,
    Tensor,
    Trace,
    UndecidedError,
    reachable,
    recording,
)
from tapeprop.ir.dims import product
from tapeprop.ops.op import constant_tensor
from tapeprop.ops.shape import expand
from tapeprop.runtime import ledger
from tapeprop.runtime.folding import Folding
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.state import cell

#: inputs -> (outputs, {key: any tensor inside that a caller may want to watch})
TraceFunction = Callable[[list[Tensor]], tuple[list[Tensor], dict[Hashable, Tensor]]]

PROGRAMS_KEPT = 32


@dataclass
class Forward:
    """A traced network. kept: what backward programs and watchers read after it has run, in a fixed order."""

    trace: Trace
    inputs: list[Tensor]
    outputs: list[Tensor]
    watched: dict[Hashable, Tensor]
    stores: list[Store]
    kept: list[Tensor] = field(default_factory=list)
    program: Program | None = None
    places: dict[Tensor, Tensor] = field(default_factory=dict)  # as recorded -> as the optimised program holds it
    lane_forms: dict[Tensor, Tensor] = field(default_factory=dict)  # as recorded -> its form in the batch-lane layout
    in_lanes: set[Tensor] = field(default_factory=set)  # what was made in that layout, even if it is kept plain
    batch: BatchLanes | None = None
    folding: Folding | None = None
    refusals: dict[tuple[int, ...], GraphError] = field(default_factory=dict)  # outputs -> why they have no gradient

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.advanced)

    def calls(self) -> list[Instruction]:
        """What outputs and state effects depend on, as recorded."""
        return reachable([*self.outputs, *(store.value for store in self.stores)])

    @property
    def advanced(self) -> list[Tensor]:
        """The state that is no more what it was, once this has run."""
        return [store.target for store in self.stores]

    def read_later(self, calls: Sequence[Instruction]) -> list[Instruction]:
        """The calls of a backward span as they run: what is not kept is computed again, old state is read from copies."""
        return self.snapshots.read_by(recompute(calls, self.trace.checkpoints, self.advanced))


@dataclass
class ValueAndGradient:
    """One program of forward and backward. gradients: {input: its gradient}, of those that have one; reached: the parameters likewise."""

    program: Program
    inputs: list[Tensor]
    values: list[Tensor]
    gradients: dict[Tensor, Tensor]
    reached: list[Parameter]


@dataclass(frozen=True)
class InputKind:
    """What an input of a network is. dtype: None for the network's. batched: whether axis 0 differs from call to call."""

    dtype: str | None = None
    batched: bool = True


ARRAY = InputKind()


def open_shapes(
    shapes: Sequence[tuple[int, ...]], kinds: Sequence[InputKind] = ()
) -> tuple[tuple[Shape, ...], dict[str, int]]:
    """(the shapes with axis 0 open, {symbol: size}): inputs of one length share a symbol. kinds: of the first few inputs."""
    symbols: dict[int, Dim] = {}
    sizes: dict[str, int] = {}
    opened: list[Shape] = []
    for shape, kind in zip(shapes, itertools.chain(kinds, itertools.repeat(ARRAY))):
        if not shape or not kind.batched:
            opened.append(shape)
            continue
        if shape[0] not in symbols:
            name = f"N{len(symbols) or ''}"
            symbols[shape[0]] = Dim.symbol(name)
            sizes[name] = shape[0]
        opened.append((symbols[shape[0]], *shape[1:]))
    return tuple(opened), sizes


class Lowering:
    """The programs of one structure. Programs are made once per (kind, open shapes) and kept."""

    def __init__(
        self,
        function: TraceFunction,
        dtype: str,
        random: Parameter | None,
        fuse: bool = True,
        winograd: bool = False,
        kinds: Sequence[InputKind] = (),
        lanes_of: Callable[[str, Any], BatchLanes | None] = batch_lanes,
    ):
        self.function = function
        self.lanes_of = lanes_of
        self.kinds = tuple(kinds)
        self.dtype = dtype
        self.random = random
        self.fuse = fuse
        self.winograd = winograd
        self._programs: dict[Hashable, object] = {}

    def once(
        self,
        kind: Hashable,
        shapes: Sequence[tuple[int, ...]],
        make: Callable[[tuple[Shape, ...], BatchLanes | None], Any],
    ) -> tuple[Any, dict[str, int]]:
        """(the program of this kind, {symbol: size}): with the batch open if that can be, else for these very sizes.

        make(shapes, batch): batch is axis 0 where it fills vector lanes, else None.
        """
        opened, sizes = open_shapes(shapes, self.kinds)
        exact = tuple(tuple(shape) for shape in shapes)
        first = self._batch_input()
        batch = self.lanes_of(self.dtype, exact[first][0]) if len(exact) > first and exact[first] else None
        lanes = None if batch is None else batch.lanes
        for found, known in ((exact, {}), (opened, sizes)):
            if (kind, found, lanes) in self._programs:
                return self._programs[kind, found, lanes], known
        ledger.count("lowerings")
        try:
            found, known = opened, sizes
            made = make(opened, None if lanes is None else BatchLanes(opened[first][0], lanes))
        except (UndecidedError, ShapeError):  # an error is told with the sizes that the caller knows
            found, known = exact, {}
            made = make(exact, batch)
        self._programs[kind, found, lanes] = made
        while len(self._programs) > PROGRAMS_KEPT:  # images of ever new sizes must not fill the memory
            self._programs.pop(next(iter(self._programs)))
        return made, known

    def _batch_input(self) -> int:
        """The first input whose axis 0 is a batch."""
        return next((i for i, kind in enumerate(self.kinds) if kind.batched), 0 if not self.kinds else len(self.kinds))

    def lanes(
        self,
        batch: BatchLanes | None,
        flexible: int = 0,
        known: Mapping[Tensor, Tensor] | None = None,
        made: set[Tensor] | None = None,
    ) -> Lanes | None:
        """How the layout pass is to be used on a program of this batch."""
        return (
            None
            if batch is None
            else Lanes(batch.batch, batch.lanes, flexible, known or {}, set() if made is None else made, self.winograd)
        )

    def trace(self, shapes: Sequence[Shape], training: bool, keep: Sequence[Hashable] = ()) -> Forward:
        """The network as recorded, not yet optimised."""
        trace = Trace(self.dtype, training, self.random)
        trace.watched = frozenset(keep)
        with recording(trace):
            dtypes = itertools.chain((kind.dtype for kind in self.kinds), itertools.repeat(None))
            inputs = [trace.input(i, shape, dtype) for i, (shape, dtype) in enumerate(zip(shapes, dtypes))]
            outputs, watched = self.function(inputs)
        found = Forward(trace, inputs, outputs, watched, trace.stores)
        _check_leaves(found)
        return found

    # ---- forward and backward apart

    def forward(
        self,
        shapes: Sequence[Shape],
        batch: BatchLanes | None,
        training: bool,
        *,
        differentiable: bool,
        keep: Sequence[Hashable] = (),
    ) -> Forward:
        """The forward program. differentiable: it keeps what the backward programs of any subset of outputs will read."""
        found = self.trace(shapes, training, keep)
        found.batch = batch
        wanted: dict[Tensor, None] = dict.fromkeys(found.watched[key] for key in keep)
        if differentiable:
            made = set(found.calls())
            count = len(found.outputs)
            for subset in dict.fromkeys([tuple(range(count)), *((i,) for i in range(count))]):
                try:
                    _, results = self._record_backward(found, subset, self._all_wanted(found))
                except ShapeError:
                    raise
                except GraphError as refusal:  # an op without a gradient: whoever asks for one hears of it
                    found.refusals[subset] = refusal
                    continue
                calls = [call for call in reachable(results.values()) if call not in made]
                for call in found.read_later(calls):
                    wanted.update(dict.fromkeys(t for t in call.operands if t.producer in made))
                wanted.update(dict.fromkeys(t for t in results.values() if t.producer in made))
            wanted.update(dict.fromkeys(found.snapshots.copies.values()))
        found.kept = [t for t in wanted if t.producer is not None]
        span = Span("forward", reachable([*found.outputs, *found.kept, *(s.value for s in found.stores)]), found.stores)
        recorded = [*found.outputs, *found.kept]
        flexible = len(found.kept) - sum(found.watched[key] in found.kept for key in set(keep))
        lanes = self.lanes(batch, flexible, made=found.in_lanes)
        storage = None if differentiable else _storage  # backward reads the results that folding does away with
        program = optimize(Program([span], found.inputs, recorded), lanes=lanes, fuse=self.fuse, storage=storage)
        found.program, found.folding = program, Folding(program)
        for tensor, kept in zip(recorded, program.outputs, strict=True):
            (found.lane_forms if kept in program.in_lanes else found.places)[tensor] = kept
            if program.in_lanes.get(kept, kept) in found.in_lanes:
                found.in_lanes.add(tensor)
        return found

    def _all_wanted(self, found: Forward) -> list[Tensor]:
        leaves = [t for source, t in found.trace.leaves.items() if isinstance(source, Parameter) and source.trainable]
        return [t for t in (*found.inputs, *leaves, *found.watched.values()) if t.dtype in FLOATS]

    def _record_backward(self, found: Forward, subset: Sequence[int], wanted: Sequence[Tensor]):
        trace = Trace(self.dtype, found.trace.training, self.random)
        with recording(trace):
            leaves = [
                trace.input(len(found.inputs) + i, output.shape, output.dtype, "gradient")
                for i, output in enumerate(found.outputs)
            ]
            seeds: dict[Tensor, Tensor] = {}
            for i in subset:
                output = found.outputs[i]
                if output.dtype not in FLOATS:
                    continue
                if output in seeds:  # one tensor may stand in two outputs
                    from tapeprop.ops.elementwise import add

                    seeds[output] = add(seeds[output], leaves[i])
                else:
                    seeds[output] = leaves[i]
            return leaves, gradients(seeds, wanted)

    def backward(
        self, found: Forward, subset: Sequence[int], parameters: Sequence[Parameter], watched: Sequence[Tensor] = ()
    ) -> tuple[Program, dict[Tensor, Tensor], list[Parameter]]:
        """(the backward program from a subset of the outputs, {input or watched tensor: its gradient}, the parameters it reaches).

        Parameter gradients are added to those that are pending, else written: see `deposit`.
        """
        for refused, refusal in found.refusals.items():
            if set(refused) <= set(subset):
                raise refusal.with_traceback(None)
        leaves = {p: found.trace.leaves[p] for p in parameters if p in found.trace.leaves}
        inputs = [t for t in found.inputs if t.dtype in FLOATS]
        seeds, results = self._record_backward(found, subset, [*inputs, *leaves.values(), *watched])
        trace = Trace(self.dtype, found.trace.training)
        stores, reached = [], []
        with recording(trace):
            for parameter, leaf in leaves.items():
                if leaf in results:
                    stores.append(deposit(trace, parameter, results[leaf]))
                    reached.append(parameter)
        kept = {t: results[t] for t in (*inputs, *watched) if t in results}
        known = [t for call in found.calls() for t in call.results]
        calls = reachable([*kept.values(), *(s.value for s in stores)], known)
        calls = found.read_later(calls)
        program = Program([Span("backward", calls, stores)], [*found.inputs, *seeds], list(kept.values()))
        lanes = self.lanes(found.batch, known=found.lane_forms, made=set(found.in_lanes))
        optimised = optimize(program, lanes=lanes, fuse=self.fuse)
        return optimised, dict(zip(kept, optimised.outputs, strict=True)), reached

    def value_and_gradient(
        self,
        shapes: Sequence[Shape],
        batch: BatchLanes | None,
        training: bool,
        trained: Callable[[Parameter], bool],
    ) -> ValueAndGradient:
        """Forward, and the gradient of the sum of all floating outputs, as one program.

        trained: which parameters get a gradient; it is added to the one that is pending.
        """
        found = self.trace(shapes, training)
        trace, forward = found.trace, found.calls()
        with recording(trace):
            times = Counter(t for t in found.outputs if t.dtype in FLOATS)  # an output may be asked for twice
            seeds = {t: expand(constant_tensor(np.asarray(n), t.dtype), t.shape) for t, n in times.items()}
            inputs = [t for t in found.inputs if t.dtype in FLOATS]
            leaves = {p: t for p, t in trace.leaves.items() if isinstance(p, Parameter) and trained(p)}
            results = gradients(seeds, [*inputs, *leaves.values()])
            reached = [p for p, leaf in leaves.items() if leaf in results]
            stores = [deposit(trace, p, results[leaves[p]]) for p in reached]
        kept = {t: results[t] for t in inputs if t in results}
        backward = reachable(
            [*kept.values(), *(store.value for store in stores)], [t for call in forward for t in call.results]
        )
        backward = found.read_later(backward)
        forward += found.snapshots.instructions
        spans = [Span("forward", forward, found.stores), Span("backward", backward, stores)]
        outputs = [*found.outputs, *kept.values()]
        program = optimize(Program(spans, found.inputs, outputs), lanes=self.lanes(batch), fuse=self.fuse)
        count = len(found.outputs)
        by_input = dict(zip(kept, program.outputs[count:], strict=True))
        return ValueAndGradient(program, found.inputs, program.outputs[:count], by_input, reached)

    def joint(self, shapes: Sequence[Shape], batch: BatchLanes | None = None) -> Program:
        """Forward in training and backward from every output to every trained parameter and input: what users look at."""
        found = self.trace(shapes, True)
        seeds, results = self._record_backward(found, range(len(found.outputs)), self._all_wanted(found))
        stores = [
            Store(gradient, found.trace.leaf(Gradient(p), p.shape, gradient.dtype, f"d {p.name}"))
            for leaf, gradient in results.items()
            if isinstance(p := leaf.source, Parameter)
        ]
        kept = [results[t] for t in found.inputs if t in results]
        forward = found.calls()
        backward = reachable([*kept, *(s.value for s in stores)], [t for call in forward for t in call.results])
        backward = found.read_later(backward)
        forward += found.snapshots.instructions
        spans = [Span("forward", forward, found.stores), Span("backward", backward, stores)]
        return optimize(
            Program(spans, [*found.inputs, *seeds], [*found.outputs, *kept]), lanes=self.lanes(batch), fuse=self.fuse
        )


def _check_leaves(found: Forward) -> None:
    """GraphError where a network reads what was recorded outside of it: nobody would feed or train that."""
    leaves = found.trace.leaves
    reads = [(call.node, t) for call in found.calls() for t in call.operands]
    for node, tensor in itertools.chain(reads, (("", t) for t in found.outputs)):
        if isinstance(tensor.source, Placeholder | Parameter) and leaves.get(tensor.source) is not tensor:
            where = f"node {node!r}: " if node else ""
            raise GraphError(
                f"{where}expected ops on the argument of trace(), on variables and on numbers, got {tensor!r}, which stands in a "
                "formula outside of the graph; call the ops inside trace()"
            )


def _storage(shape: Shape, dtype: str) -> Tensor:
    """A leaf with a buffer of its own."""
    size = int(product(shape))  # type: ignore[arg-type]  # of weights: no size is open
    return Tensor(shape, dtype, source=Region(Buffer("folded.", size, dtype), 0, size), name="folded")


def deposit(trace: Trace, parameter: Parameter, gradient: Tensor) -> Store:
    """The store of a parameter's gradient: beside the one that is pending it is added, else it replaces what stood there."""
    from tapeprop.ops.elementwise import add_if_pending

    home = cell(parameter)
    leaf = trace.leaf(Gradient(parameter), parameter.shape, trace.dtype, "gradient")
    flag = trace.leaf(Region(home.segment.pending, home.index, 1), (1,), trace.dtype, "pending")
    return Store(add_if_pending(gradient, leaf, flag), leaf)


def buckets(roots: Sequence[Tensor], marks: Mapping[str, int]) -> dict[str, list]:
    """The instructions behind `roots`, cut into spans by serial number: marks = {span: first serial after it}, in order."""
    found: dict[str, list] = {name: [] for name in marks}
    bounds = list(marks.items())
    k = 0
    for call in reachable(roots):
        while call.serial >= bounds[k][1]:
            k += 1
        found[bounds[k][0]].append(call)
    return found
