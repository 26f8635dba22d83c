"""Epochs over whole arrays, many training steps per native call: `FitSession`.

A step gathers its batch inside the tape (see `runtime.step`); where gradients are accumulated over micro-batches they run in the
same native call as their update.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tapeprop.errors import DeviceError, GraphError
from tapeprop.ir import Input
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.step import BatchSource, LossRule, StepProgram, record_step
from tapeprop.runtime.training import Trainer
from tapeprop.runtime.update import require_optimizer

_session_number = itertools.count()


class FitSession:
    """Epochs over arrays that stay where they are; each `run` is one native call of many steps, all micro-batches included.

    The arrays must not change during the session. The last, smaller batch of an epoch has a plan of its own over the same state.
    ready: called before each run; raises where the network is no longer the one that the session was made for. close() ends the
    session.
    """

    def __init__(
        self,
        trainer: Trainer,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[LossRule | None],
        weights: Sequence[float],
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
