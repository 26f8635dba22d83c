"""A whole training step as one program: gather, forward, loss, backward, clip, update.

Spans: `gather` (fit only), `forward`, `loss`, `backward`, `update`. Gradients are written into the parameters' gradient buffers, so they
stay readable; the update span reads them there, exactly as a separate update() does. Where fit accumulates over micro-batches the
spans up to `backward` run once for each of them, and then `update`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tapeprop.compiler.gradient import FLOATS, gradients
from tapeprop.compiler.layout import BatchLanes
from tapeprop.compiler.passes import optimize
from tapeprop.compiler.recompute import recompute
from tapeprop.compiler.snapshots import Snapshots
from tapeprop.errors import GraphError
from tapeprop.ir import (
    Gradient,
    Parameter,
    Program,
    Region,
    Shape,
    Span,
    Store,
    Tensor,
    Trace,
    at_node,
    mark,
    recording,
)
from tapeprop.ops.elementwise import add, add_if_pending, compute
from tapeprop.ops.gather import accumulate, advance, count_correct, take_rows
from tapeprop.runtime.lowering import buckets
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.network import Network
from tapeprop.runtime.state import cell
from tapeprop.runtime.update import OptimizerState, mark_consumed, record_update


class LossRule(Protocol):
    """What `tapeprop.losses.Loss` gives."""

    def key(self) -> Hashable: ...
    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor: ...


@dataclass
class StepProgram:
    """A training step. outputs of the program: the total loss, then each loss.

    reached: the parameters that get a gradient; unreached: the other trained ones. left: those of `reached` that no optimizer
    advances, so that their gradients stay pending.
    """

    program: Program
    losses: list[Tensor]
    reached: list[Parameter]
    unreached: list[Parameter]
    left: list[Parameter]

    def __post_init__(self) -> None:
        self._segments = list(dict.fromkeys(cell(parameter).segment for parameter in self.reached))

    def consume(self) -> None:
        """The gradients of `reached` wait no longer."""
        # Asked first: that is so in most steps, and there may be thousands of parameters.
        if any(np.count_nonzero(segment.pending.read()) for segment in self._segments):
            mark_consumed(self.reached)

    def program_leaves(self) -> list[Tensor]:
        """Every leaf that the program reads or stores to."""
        read = [t for call in self.program.instructions for t in call.operands if t.producer is None]
        return list(dict.fromkeys([*read, *(s.target for span in self.program.spans for s in span.stores)]))


@dataclass(frozen=True)
class BatchSource:
    """Where a step gathers its batch: every array's Input is the whole data set, `order` and `cursor` say which rows come next.

    group: the micro-batches of an update, whose gradients are averaged; `waiting` is 1 from the first of them to the update.
    """

    order: Buffer  # int64 (samples,)
    cursor: Buffer
    totals: Buffer  # float64: [sum of losses times samples, samples, correct]
    batch: int
    accuracy: bool
    group: int
    waiting: Buffer


def record_step(
    network: Network,
    optimizers: OptimizerState,
    shapes: Sequence[Shape],
    labels: Sequence[tuple[Shape, str]],
    losses: Sequence[LossRule | None],
    weights: Sequence[float],
    source: BatchSource | None = None,
    *,
    lanes: BatchLanes | None = None,
) -> StepProgram:
    """The program of one step. shapes, labels: of the batch, or of the whole data where a source gathers from it.

    lanes: the batch where it fills vector lanes. losses: one per output, None where an output has none. weights: the
    factor of each loss.
    """
    group = 1 if source is None else source.group
    options, lowering = network.options, network.lowering
    trace = Trace(options.dtype, True, lowering.random)
    marks: dict[str, int] = {}
    stores: dict[str, list[Store]] = {}

    def end_span(name: str) -> None:
        marks[name] = mark()
        stores[name], trace.stores = trace.stores, []

    with recording(trace):
        kinds = [*((shape, options.dtype, "input") for shape in shapes), *((s, d, "labels") for s, d in labels)]
        feeds = [trace.input(i, shape, dtype, name) for i, (shape, dtype, name) in enumerate(kinds)]
        arrays = list(feeds)
        if source is not None:
            samples = source.order.size
            order = trace.leaf(Region(source.order, 0, samples), (samples,), "int64", "order")
            cursor = trace.leaf(Region(source.cursor, 0, 1), (1,), "int64", "cursor")
            arrays = [take_rows(array, order, cursor, source.batch) for array in arrays]
            end_span("gather")
        outputs, _ = lowering.function(arrays[: len(shapes)])
        end_span("forward")
        if len(outputs) != len(losses):
            raise GraphError(f"expected one loss per output, {len(outputs)} (None for no loss), got {len(losses)}")
        truths = iter(arrays[len(shapes) :])
        pairs = [(loss, out, w) for loss, out, w in zip(losses, outputs, weights, strict=True) if loss is not None]
        found = []
        for loss, out, _ in pairs:
            with at_node(out.producer.node if out.producer else ""):  # what a loss reports names the node it stands at
                found.append(loss.trace(out, next(truths)))
        total = _weighted(found, [w for _, _, w in pairs])
        if source is not None:
            _count(trace, source, total, [out for _, out, _ in pairs], arrays[len(shapes) :])
        # the gradients of the outputs are made with the losses: backward starts from them as it does from a caller's
        seeds: dict[Tensor, Tensor] = {}
        for value, (_, out, w) in zip(found, pairs, strict=True):
            flow = gradients({value: trace.constant(np.full((), w * (1 / group), options.dtype))}, [out])
            if out in flow:
                seeds[out] = add(seeds[out], flow[out]) if out in seeds else flow[out]
        end_span("loss")
        frozen = network.frozen()
        leaves = {
            s: t
            for s, t in trace.leaves.items()
            if isinstance(s, Parameter) and s.trainable and s not in frozen and t.dtype in FLOATS
        }
        results = gradients(seeds, leaves.values()) if seeds else {}
        reached = [p for p, t in leaves.items() if t in results]
        waiting = None
        if source is not None and group > 1:
            waiting = trace.leaf(Region(source.waiting, 0, 1), (1,), options.dtype, "waiting")
        for parameter in reached:
            leaf = trace.leaf(Gradient(parameter), parameter.shape, options.dtype, "gradient")
            gradient = results[leaves[parameter]]
            if waiting is not None:
                gradient = add_if_pending(gradient, leaf, waiting)
            trace.stores.append(Store(gradient, leaf))
        if source is not None:
            trace.stores.append(Store(advance(cursor, source.batch), cursor))
        if waiting is not None:
            trace.stores.append(Store(trace.constant(np.ones(1)), waiting))
        end_span("backward")
    record_update(trace, optimizers, optimizers.split(reached), options.clip_norm)
    if waiting is not None:
        trace.stores.append(Store(trace.constant(np.zeros(1)), waiting))
    end_span("update")
    values = [store.value for effects in stores.values() for store in effects]
    calls = buckets([total, *found, *values], marks)
    targets = [store.target for name in ("forward", "loss") for store in stores[name]]
    snapshots = Snapshots(targets)
    calls["backward"] = snapshots.read_by(recompute(calls["backward"], trace.checkpoints, targets))
    calls["forward"] += snapshots.instructions
    spans = [Span(name, calls[name], stores[name]) for name in marks]
    program = optimize(Program(spans, feeds, [total, *found]), lanes=lowering.lanes(lanes), fuse=lowering.fuse)
    trained = [s for s in trace.leaves if isinstance(s, Parameter) and s.trainable]
    unreached, advanced = set(trained) - set(reached), set(optimizers.total())
    return StepProgram(
        program,
        program.outputs,
        reached,
        [p for p in trained if p in unreached],
        [p for p in reached if p not in advanced],
    )


def _weighted(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if not losses:
        raise GraphError("expected at least one loss, got None for every output; give the outputs to train a loss")
    if len(losses) == 1 and weights[0] == 1:
        return losses[0]
    return compute(
        lambda *s: sum((w * x for w, x in zip(weights[1:], s[1:], strict=True)), weights[0] * s[0]),
        *losses,
        label="total_loss",
    )[0]


def _count(
    trace: Trace, source: BatchSource, total: Tensor, outputs: Sequence[Tensor], labels: Sequence[Tensor]
) -> None:
    """Adds the step's loss and its correct predictions to the totals of the epoch."""
    loss, samples, correct = (
        trace.leaf(Region(source.totals, k, 1), (1,), "float64", name)
        for k, name in enumerate(("loss_sum", "samples", "correct"))
    )
    trace.stores.append(Store(accumulate(loss, total, source.batch), loss))
    # in the kernel of the loss, to which the batch is a number of the row: a formula would be compiled for each batch size
    trace.stores.append(Store(accumulate(samples, trace.constant(np.ones(1, total.dtype)), source.batch), samples))
    if source.accuracy:
        trace.stores.append(Store(accumulate(correct, count_correct(outputs[0], labels[0]), 1), correct))
