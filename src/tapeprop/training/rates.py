"""Which schedule sets the learning rate of which optimizer during a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tapeprop.errors import GraphError
from tapeprop.schedules import Schedule
from tapeprop.training.model import Model


class Rates:
    """The schedules of a fit: one for every optimizer of the graph, or a dict with some optimizers' own.

    schedule: None, a Schedule, or {optimizer, node or node's name: Schedule}; what it does not name keeps its rate. One
    schedule may stand under several keys. TypeError for what is no schedule, GraphError for a key that names no optimizer,
    or two keys that name the same.
    """

    def __init__(self, model: Model, schedule: Any):
        self.model = model
        self.schedules: list[
            tuple[Schedule, list[Any] | None]
        ] = []  # with the optimizers that each serves, None for all
        if isinstance(schedule, Mapping):
            for of, one in schedule.items():
                self._add(model.optimizer_of(of), _checked(one))
        elif schedule is not None:
            self.schedules.append((_checked(schedule), None))

    def _add(self, optimizer: Any, schedule: Schedule) -> None:
        if any(optimizer is other for _, served in self.schedules for other in served or ()):
            raise GraphError(f"schedule: expected each optimizer once, received {optimizer!r} under two keys")
        for known, served in self.schedules:
            if known is schedule and served is not None:
                served.append(optimizer)
                return
        self.schedules.append((schedule, [optimizer]))

    def __bool__(self) -> bool:
        return bool(self.schedules)

    @property
    def each_batch(self) -> bool:
        """Whether some schedule counts batches."""
        return any(schedule.by == "batch" for schedule, _ in self.schedules)

    def begin(self, epochs: int, batches_per_epoch: int) -> None:
        """Before the first epoch. GraphError where an optimizer that was named advances nothing."""
        for schedule, served in self.schedules:
            for optimizer in served or ():
                self.model.learning_rate(optimizer)
            first = next(iter(self._served(served)), None)
            lr = self.model.lr if first is None else self.model.learning_rate(first[1])
            schedule.begin(lr, epochs=epochs, batches_per_epoch=batches_per_epoch)

    def apply(self, by: str) -> None:
        """Sets the rates of the coming epoch or batch, as far as schedules count by that."""
        for schedule, served in self.schedules:
            if schedule.by != by:
                continue
            for i, (name, optimizer) in enumerate(self._served(served)):
                if i:
                    schedule.join(name, self.model.learning_rate(optimizer))
                self.model.set_lr(schedule.current(name if i else None), optimizer)

    def advance(self, by: str, logs: Mapping[str, float]) -> None:
        """Tells the schedules that count by that of an epoch or batch that is over."""
        for schedule, _ in self.schedules:
            if schedule.by == by:
                schedule.advance(logs)

    def _served(self, served: list[Any] | None) -> list[tuple[str, Any]]:
        """(name, optimizer) of those at work that a schedule is for: callbacks may have changed them."""
        at_work = self.model.optimizers.items()
        if served is None:
            return list(at_work)
        return [(name, rule) for one in served for name, rule in at_work if rule is one]


def _checked(schedule: Any) -> Schedule:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a tapeprop.schedules.Schedule, received {schedule!r}")
    return schedule
