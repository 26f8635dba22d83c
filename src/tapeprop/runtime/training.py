"""Training of a network step by step: `Trainer`. A step (`runtime.step`) is one native call; `runtime.fit_session` has many in one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tapeprop.compiler.layout import BatchLanes
from tapeprop.compiler.passes import optimize
from tapeprop.ir import Parameter, Program, Shape, Span, Trace, reachable
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.network import Network
from tapeprop.runtime.plans import Trial
from tapeprop.runtime.snapshot import restored
from tapeprop.runtime.state import cell, pending_of, zero_gradients
from tapeprop.runtime.step import LossRule, StepProgram, record_step
from tapeprop.runtime.update import OptimizerState, Unit, mark_consumed, record_update, require_optimizer


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
        span = Span("update", reachable([store.value for store in trace.stores]), trace.stores)
        program = optimize(Program([span], [], []))
        return self.network.make_executable("update", program, {}, self.network.tight_arena)
