"""The oracle of compiled updates: an optimizer's expressions evaluated by NumPy."""

from __future__ import annotations

import numpy as np

from tapeprop.ops.expression import evaluate, inputs
from tapeprop.optimizers import Optimizer


class Stepper:
    """Runs an optimizer's expressions by their NumPy evaluation: what the compiled update has to agree with."""

    def __init__(self, optimizer: Optimizer, weights: np.ndarray):
        self.optimizer = optimizer
        self.weights = weights.copy()
        self.slots = {name: np.full_like(weights, optimizer.slot_initial(name)) for name in optimizer.slots}
        self.scalars = optimizer.hyper()

    def step(self, gradient: np.ndarray) -> None:
        """One update, in the weights' dtype; the scalars in float64."""
        names = list(self.scalars)
        prepared = self.optimizer.prepare(dict(zip(names, inputs(len(names)), strict=True)))
        numbers = evaluate(list(prepared.values()), list(self.scalars.values()), np.float64)
        scalars = self.scalars | {name: float(value) for name, value in zip(prepared, numbers, strict=True)}
        arrays = [self.weights, gradient, *self.slots.values(), *scalars.values()]
        weight, grad, *rest = inputs(len(arrays))
        slots = dict(zip(self.slots, rest, strict=False))
        symbols = dict(zip(scalars, rest[len(slots) :], strict=True))
        new, new_slots = self.optimizer.rule(weight, grad, slots, symbols)
        assert set(new_slots) == set(self.slots)
        roots = [new, *(new_slots[name] for name in self.slots)]
        self.weights, *values = evaluate(roots, arrays, self.weights.dtype)
        self.slots = dict(zip(self.slots, values, strict=True))
        self.scalars = {name: scalars[name] for name in names}
