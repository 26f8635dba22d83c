"""Whole training steps as one tape: gather, forward, loss, backward, clip, update; one native call for one step or many.

Spans: `gather` (fit only), `forward`, `loss`, `backward`, `update`. Gradients are written into the parameters' gradient buffers, so they
stay readable; the update span reads them there, exactly as a separate update() does. Where fit accumulates over micro-batches the
spans up to `backward` run once for each of them, and then `update`, all in the same native call.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tapeprop.compiler.gradient import FLOATS, gradients
from tapeprop.compiler.layout import BatchLanes
from tapeprop.compiler.passes import optimize
from tapeprop.compiler.recompute import recompute
from tapeprop.compiler.snapshots import Snapshots
from tapeprop.errors import DeviceError, GraphError
from tapeprop.ir import (
    Gradient,
    Input,
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
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.lowering import buckets
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.network import Network, Trial, pending_of
from tapeprop.runtime.snapshot import restored
from tapeprop.runtime.state import cell
from tapeprop.runtime.update import OptimizerState, Unit, mark_consumed, record_update, require_optimizer


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


class Trainer:
    """Training of one network: train_step, the separate update, and fit sessions."""

    def __init__(self, network: Network, optimizers: OptimizerState):
        self.network = network
        self.optimizers = optimizers

    # ---- one step

    def step_plan(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[LossRule | None],
        weights: Sequence[float],
    ) -> tuple[StepProgram, Executable]:
        """The plan of a training step for arrays of these shapes."""
        network = self.network
        shapes = tuple([a.shape for a in (*arrays, *labels)])
        kinds = tuple([a.dtype for a in labels])
        key = (
            "step", kinds, tuple([loss and loss.key() for loss in losses]), tuple(weights), self.optimizers.version,
            network.frozen(),
        )  # fmt: skip

        def lower(opened: tuple[Shape, ...], batch: BatchLanes | None) -> StepProgram:
            pairs = list(zip(opened[len(arrays) :], map(str, kinds), strict=True))
            return record_step(network, self.optimizers, opened[: len(arrays)], pairs, losses, weights, lanes=batch)

        def make() -> tuple[StepProgram, Executable]:
            step, sizes = network.lowering.once(key, shapes, lower)
            return step, network.make_executable("train_step", step.program, sizes, network.tight_arena)

        return network.plan((key, shapes), make)

    def train_step(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[LossRule | None],
        weights: Sequence[float],
    ) -> float:
        """zero_grad, forward, loss, backward, clip, update in one native call; the total loss."""
        network = self.network
        with network.lock:
            require_optimizer(self.optimizers)
            version = -1
            while version != self.optimizers.version:  # recording may split a unit, which makes a new key
                version = self.optimizers.version
                step, executable = self.step_plan(arrays, labels, losses, weights)
            try:
                for tensor, array in zip(step.program.inputs, (*arrays, *labels), strict=True):
                    executable.bind(tensor, array)
                self.run_step(step, lambda: network.execute(executable))
                return float(executable.view(step.losses[0])[()])
            finally:
                executable.release()

    def run_step(self, step: StepProgram, run: Callable[[], None]) -> None:
        """Calls `run` for steps that update. Gradients are as zero_grad, backward and update leave them."""
        self.network.forget()
        zero_gradients(step.unreached)
        step.consume()
        try:
            run()
        except BaseException:
            zero_gradients(step.reached)
            raise
        for parameter in step.left:
            cell(parameter).pending = True

    @contextlib.contextmanager
    def trial(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[LossRule | None],
        weights: Sequence[float],
    ) -> Iterator[Trial]:
        """A training step bound to these arrays, to be run inside; all that it changes is put back afterwards.

        Works without an optimizer: there is no update then.
        """
        network = self.network
        with network.lock:
            step, executable = self.step_plan(arrays, labels, losses, weights)
            for tensor, array in zip(step.program.inputs, (*arrays, *labels), strict=True):
                executable.bind(tensor, array)
            state = [t.source for t in step.program_leaves() if isinstance(t.source, Parameter)]
            try:
                with restored([*state, *self.optimizers.total()], self.optimizers):
                    yield Trial(network, executable)
            finally:
                executable.release()

    # ---- update alone

    def update(self) -> None:
        """Advances the parameters whose gradients are pending, and consumes them. StateError without an optimizer."""
        network = self.network
        with network.lock:
            require_optimizer(self.optimizers)
            frozen = network.frozen()
            pending = [p for p in pending_of(self.optimizers.total()) if p not in frozen]
            if not pending:
                return
            units = self.optimizers.split(pending)
            key = ("update", self.optimizers.version, frozenset(pending))
            executable = network.plan(key, lambda: self._make_update(units))
            network.execute(executable)
            mark_consumed(pending)
            network.forget()

    def _make_update(self, units: Sequence[Unit]) -> Executable:
        ledger.count("lowerings")
        trace = Trace(self.network.options.dtype, True)
        record_update(trace, self.optimizers, units, self.network.options.clip_norm)
        from tapeprop.ir import reachable

        span = Span("update", reachable([store.value for store in trace.stores]), trace.stores)
        program = optimize(Program([span], [], []))
        return self.network.make_executable("update", program, {}, self.network.tight_arena)

    # ---- many steps

    def fit_session(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[LossRule | None],
        weights: Sequence[float],
        batch_size: int,
        accuracy: bool,
        accumulate: int = 1,
        ready: Callable[[], object] = lambda: None,
    ) -> FitSession:
        """A session that trains on batches gathered from whole arrays inside the tape.

        ready: called before each run; raises where the network is no longer the one that the session was made for.
        """
        return FitSession(self, arrays, labels, losses, weights, batch_size, accuracy, accumulate, ready)


_session_number = itertools.count()


class FitSession:
    """Epochs over arrays that stay where they are; each `run` is one native call of many steps, all micro-batches included.

    The arrays must not change during the session. The last, smaller batch of an epoch has a plan of its own over the same state.
    close() ends the session.
    """

    def __init__(
        self,
        trainer: Trainer,
        arrays,
        labels,
        losses,
        weights,
        batch_size: int,
        accuracy: bool,
        accumulate: int,
        ready: Callable[[], object],
    ):
        self.trainer = trainer
        self.ready = ready
        self.arrays = [*arrays, *labels]
        self.held = trainer.network.machine.hold(self.arrays)
        self.inputs = len(arrays)
        self.losses, self.weights = losses, weights
        self.samples = len(arrays[0])
        self.batch_size = min(batch_size, self.samples)
        self.accuracy = accuracy
        self.accumulate = accumulate
        self.number = next(_session_number)
        self._written: dict[Buffer, None] = {}  # all that the plans store to, gradients apart
        self.cursor = Buffer("cursor.", 1, "int64")
        self.totals_buffer = Buffer("totals.", 3, "float64")
        self.order = Buffer("order.", self.samples, "int64")
        require_optimizer(trainer.optimizers)
        self.waiting = Buffer("waiting.", 1, trainer.network.options.dtype)
        try:
            trainer.network.machine.link([self._plan(*kind)[1] for kind in self._kinds()])
        except BaseException:
            self.close()
            raise

    def _kinds(self) -> list[tuple[int, int]]:
        """(batch, micro-batches of its update) of every plan that an epoch needs."""
        whole, odd = divmod(self.samples, self.batch_size)
        groups, left = divmod(whole, self.accumulate)
        found = [(self.batch_size, self.accumulate)] if groups else []
        last = left + (odd > 0)
        found += [(self.batch_size, last)] if left else []
        found += [(odd, last)] if odd else []
        return list(dict.fromkeys(found))

    def start_epoch(self, order: np.ndarray) -> None:
        """Begins an epoch over the rows in this order. order: int64 (samples,), a permutation."""
        if order.shape != (self.samples,):
            raise GraphError(f"order: expected shape {(self.samples,)}, got {order.shape}")
        self._bring_home()
        self.order.array[:] = order
        self.cursor.array[0] = 0
        self.totals_buffer.array[:] = 0

    def _bring_home(self) -> None:
        """Brings all that a device has trained so far to the host: what is there when the device is lost belongs together."""
        for buffer in self._written:
            buffer.read()

    def close(self) -> None:
        """Ends the session: its plans go, and with them what a device holds of the arrays. Also where the device is lost."""
        network = self.trainer.network
        with network.lock:
            for key in [key for key in network.plans if key[:2] == ("fit", self.number)]:  # type: ignore[index]
                del network.plans[key]
            self.held = []
            with contextlib.suppress(DeviceError):  # the next call that needs the device tells
                self._bring_home()

    @property
    def steps_left(self) -> int:
        """Steps to the end of the epoch, the last smaller one included."""
        return -(-(self.samples - int(self.cursor.read()[0])) // self.batch_size)

    def run(self, steps: int) -> int:
        """Runs at most `steps` steps, but a whole update at least; the number that were run (0 at the end of the epoch)."""
        self.ready()
        with self.trainer.network.lock:
            require_optimizer(self.trainer.optimizers)
            left = self.samples - int(self.cursor.read()[0])
            if not left:
                return 0
            whole = left // self.batch_size
            groups = min(max(steps // self.accumulate, 1), whole // self.accumulate)
            if groups:
                self._execute(self.batch_size, self.accumulate, groups)
                return groups * self.accumulate
            return self._run_last_group(whole, left % self.batch_size)

    def _run_last_group(self, whole: int, odd: int) -> int:
        """The last update of an epoch, of fewer micro-batches than the others or with a smaller one; their number."""
        count = whole + (odd > 0)
        if not (whole and odd):
            self._execute(odd or self.batch_size, count, 1)
            return count
        network, (step, first) = self.trainer.network, self._plan(self.batch_size, count)
        _, last = self._plan(odd, count)

        def run() -> None:
            with network.undone_on_failure(first, last):
                network.execute(first, "gather", "backward", steps=whole)
                network.execute(last)

        self._train(step, run)
        return count

    def _execute(self, batch: int, group: int, updates: int) -> None:
        step, executable = self._plan(batch, group)
        self._train(step, lambda: self.trainer.network.execute(executable, steps=updates))

    def _train(self, step: StepProgram, run: Callable[[], None]) -> None:
        self.waiting.array[0] = 0  # a run that failed may have left it
        self.trainer.run_step(step, run)

    def _plan(self, batch: int, group: int) -> tuple[StepProgram, Executable]:
        trainer, network = self.trainer, self.trainer.network
        version = -1
        while version != trainer.optimizers.version:
            version = trainer.optimizers.version
            key = ("fit", self.number, batch, group, version, network.frozen())
            step, executable = network.plan(key, lambda: self._make(batch, group))
        return step, executable

    def _make(self, batch: int, group: int) -> tuple[StepProgram, Executable]:
        trainer, network = self.trainer, self.trainer.network
        ledger.count("lowerings")
        source = BatchSource(self.order, self.cursor, self.totals_buffer, batch, self.accuracy, group, self.waiting)
        step = record_step(
            network,
            trainer.optimizers,
            [a.shape for a in self.arrays[: self.inputs]],
            [(a.shape, str(a.dtype)) for a in self.arrays[self.inputs :]],
            self.losses,
            self.weights,
            source,
            lanes=network.machine.lanes(network.options.dtype, batch),
        )
        executable = network.make_executable("fit", step.program, {}, network.tight_arena)
        self._written |= dict.fromkeys(executable.written)
        if batch == self.batch_size or group == 1:
            executable.repeat("backward", group)
        for tensor in step.program.inputs:
            assert isinstance(tensor.source, Input)
            executable.bind(tensor, self.held[tensor.source.index])
        return step, executable

    def totals(self) -> Mapping[str, float]:
        """{"loss": mean over the samples of this epoch so far, "samples": their number, "accuracy": where it is counted}."""
        loss, samples, correct = self.totals_buffer.read()
        found = {"loss": loss / max(samples, 1), "samples": samples}
        if self.accuracy:
            found["accuracy"] = correct / max(samples, 1)
        return found


def zero_gradients(parameters: Sequence[Parameter]) -> None:
    """Drops the gradients: they read as zero and the next backward starts anew."""
    for parameter in parameters:
        cell(parameter).clear_gradient()
