"""Learning-rate schedules: pure functions of a count of epochs or batches, with PyTorch's values.

`schedule.lr(t, base_lr)` is the learning rate of epoch (or batch) number t, counted from 0, where the optimizer's own
rate is `base_lr`. `fit(schedule=...)` asks before each epoch (`by="epoch"`) or each update (`by="batch"`). A schedule
object counts on through several fits; `state_dict()` is all it remembers. Where it serves several optimizers each has
a base rate of its own, as PyTorch's parameter groups have.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

__all__ = [
    "CosineAnnealingLR",
    "CyclicLR",
    "ExponentialLR",
    "LinearWarmup",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "Schedule",
    "StepLR",
]

By = Literal["epoch", "batch"]


class Schedule:
    """The base of all schedules. by: what is counted, "epoch" or "batch" (ValueError for another word).

    `t` is the count so far; `base_lr` the optimizer's rate when the schedule was first used, None before. `base_lrs`:
    those of further optimizers, by name.
    """

    #: What `state_dict` holds.
    remembered: tuple[str, ...] = ("t", "base_lr")
    #: What it holds beside that where there are further optimizers.
    of_several: tuple[str, ...] = ("base_lrs",)

    def __init__(self, by: By = "epoch"):
        if by not in ("epoch", "batch"):
            raise ValueError(f'{type(self).__name__}: by must be "epoch" or "batch"; received {by!r}')
        self.by = by
        self.t = 0
        self.base_lr: float | None = None
        self.base_lrs: dict[str, float] = {}

    def lr(self, t: int, base_lr: float) -> float:
        """The learning rate of epoch or batch number `t` >= 0."""
        raise NotImplementedError(f"{type(self).__name__} has no lr(); give it one")

    def begin(self, lr: float, *, epochs: int, batches_per_epoch: int) -> None:
        """Called by `fit` before its first epoch. lr: the rate in force; it becomes `base_lr` on the first use."""
        if self.base_lr is None:
            self.base_lr = float(lr)

    def join(self, name: str, lr: float) -> None:
        """Called by `fit` where the schedule serves one more optimizer: on the first use of `name`, lr is its base rate."""
        self.base_lrs.setdefault(name, float(lr))

    def current(self, name: str | None = None) -> float:
        """The learning rate of the coming epoch or batch; name: of an optimizer that has joined."""
        if self.base_lr is None:
            raise ValueError(f"{type(self).__name__} has not begun; pass it to fit(), or call begin() first")
        return self.lr(self.t, self.base_lr if name is None else self.base_lrs.get(name, self.base_lr))

    def advance(self, logs: Mapping[str, float]) -> None:
        """Called when the epoch or batch is over. logs: the figures so far, "loss" among them."""
        self.t += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the schedule remembers, plain numbers (and a dict of them where it serves several optimizers)."""
        names = (*self.remembered, *self.of_several) if self.base_lrs else self.remembered
        return {name: copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave. ValueError where an entry is missing or unknown."""
        if set(state) - set(self.of_several) != set(self.remembered):
            raise ValueError(
                f"{type(self).__name__}: expected the entries {', '.join(self.remembered)}, received {', '.join(state)}"
            )
        self.base_lrs = {}
        for name, value in state.items():
            setattr(self, name, copy(value))


class StepLR(Schedule):
    """base_lr * gamma^(t // step_size). torch.optim.lr_scheduler.StepLR."""

    def __init__(self, step_size: int, gamma: float = 0.1, by: By = "epoch"):
        super().__init__(by)
        self.step_size = _count("StepLR: step_size", step_size)
        self.gamma = _positive("StepLR: gamma", gamma)

    def lr(self, t: int, base_lr: float) -> float:
        return base_lr * self.gamma ** (t // self.step_size)


class ExponentialLR(Schedule):
    """base_lr * gamma^t. torch.optim.lr_scheduler.ExponentialLR."""

    def __init__(self, gamma: float, by: By = "epoch"):
        super().__init__(by)
        self.gamma = _positive("ExponentialLR: gamma", gamma)

    def lr(self, t: int, base_lr: float) -> float:
        return base_lr * self.gamma**t


class CosineAnnealingLR(Schedule):
    """Half a cosine from base_lr at t = 0 to eta_min at t = T_max, and back (Loshchilov and Hutter 2017).

    torch.optim.lr_scheduler.CosineAnnealingLR, without restarts.
    """

    def __init__(self, T_max: int, eta_min: float = 0.0, by: By = "epoch"):
        super().__init__(by)
        self.T_max = _count("CosineAnnealingLR: T_max", T_max)
        self.eta_min = _at_least_zero("CosineAnnealingLR: eta_min", eta_min)

    def lr(self, t: int, base_lr: float) -> float:
        return self.eta_min + (base_lr - self.eta_min) * (1 + math.cos(math.pi * t / self.T_max)) / 2


class CyclicLR(Schedule):
    """A triangle wave between base_lr and max_lr (Smith 2017). torch.optim.lr_scheduler.CyclicLR without its momentum
    cycle.

    mode: "triangular"; "triangular2" halves the height at each cycle; "exp_range" scales it by gamma^t.
    The `base_lr` given here stands for that of every optimizer.
    """

    def __init__(
        self,
        base_lr: float,
        max_lr: float,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        by: By = "batch",
    ):
        super().__init__(by)
        self.base_lr = _at_least_zero("CyclicLR: base_lr", base_lr)
        self.max_lr = _positive("CyclicLR: max_lr", max_lr)
        self.up = _count("CyclicLR: step_size_up", step_size_up)
        self.down = self.up if step_size_down is None else _count("CyclicLR: step_size_down", step_size_down)
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(f'CyclicLR: mode must be "triangular", "triangular2" or "exp_range"; received {mode!r}')
        self.mode = mode
        self.gamma = _positive("CyclicLR: gamma", gamma)

    def join(self, name: str, lr: float) -> None:
        """Nothing is noted: every optimizer takes the `base_lr` of the constructor."""

    def lr(self, t: int, base_lr: float) -> float:
        cycle, place = divmod(t, self.up + self.down)
        height = place / self.up if place <= self.up else 1 - (place - self.up) / self.down
        scale = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": self.gamma**t}[self.mode]
        return base_lr + (self.max_lr - base_lr) * height * scale


class OneCycleLR(Schedule):
    """One rise from max_lr / div_factor to max_lr and one fall to 1 / final_div_factor of where it began (Smith and
    Topin 2019).

    torch.optim.lr_scheduler.OneCycleLR without its momentum cycle. total_steps: None takes the length of the fit.
    pct_start: the part of the steps that rises, in (0, 1). After the last step the rate stays.
    """

    remembered = ("t", "base_lr", "total_steps")

    def __init__(
        self,
        max_lr: float,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        by: By = "batch",
    ):
        super().__init__(by)
        self.max_lr = _positive("OneCycleLR: max_lr", max_lr)
        self.total_steps = None if total_steps is None else _count("OneCycleLR: total_steps", total_steps)
        if not 0 < pct_start < 1:
            raise ValueError(f"OneCycleLR: pct_start must lie between 0 and 1; received {pct_start!r}")
        self.pct_start = float(pct_start)
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f'OneCycleLR: anneal_strategy must be "cos" or "linear"; received {anneal_strategy!r}')
        self.anneal_strategy = anneal_strategy
        self.div_factor = _positive("OneCycleLR: div_factor", div_factor)
        self.final_div_factor = _positive("OneCycleLR: final_div_factor", final_div_factor)
        self.three_phase = bool(three_phase)

    def begin(self, lr: float, *, epochs: int, batches_per_epoch: int) -> None:
        super().begin(lr, epochs=epochs, batches_per_epoch=batches_per_epoch)
        if self.total_steps is None:
            self.total_steps = epochs * (batches_per_epoch if self.by == "batch" else 1)

    def lr(self, t: int, base_lr: float) -> float:
        if self.total_steps is None:
            raise ValueError("OneCycleLR: total_steps is not known before begin(); give it to the constructor")
        first = self.max_lr / self.div_factor
        last, peak = first / self.final_div_factor, self.pct_start * self.total_steps - 1
        phases = [(peak, first, self.max_lr), (self.total_steps - 1, self.max_lr, last)]
        if self.three_phase:
            back = 2 * self.pct_start * self.total_steps - 2
            phases = [phases[0], (back, self.max_lr, first), (self.total_steps - 1, first, last)]
        start = 0.0
        for end, low, high in phases[:-1]:
            if t <= end:
                return self._between(low, high, (t - start) / (end - start) if end > start else 1.0)
            start = end
        end, low, high = phases[-1]
        return self._between(low, high, min((t - start) / (end - start), 1.0) if end > start else 1.0)

    def _between(self, a: float, b: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return a + (b - a) * part
        return b + (a - b) / 2 * (math.cos(math.pi * part) + 1)


class ReduceLROnPlateau(Schedule):
    """Multiplies the rate by `factor` after more than `patience` epochs without a better figure.

    torch.optim.lr_scheduler.ReduceLROnPlateau. monitor: the figure to watch; None takes "val_loss" where there is
    validation data, else "loss". mode: "min" or "max". threshold: what counts as better, as a part of the best
    ("rel") or as a difference ("abs"). cooldown: epochs after a reduction in which nothing is counted. A figure that
    is NaN is never better.
    """

    remembered = ("t", "base_lr", "reduced_lr", "best", "bad_epochs", "cooling")
    of_several = ("base_lrs", "reductions")

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        monitor: str | None = None,
    ):
        super().__init__("epoch")
        if mode not in ("min", "max"):
            raise ValueError(f'ReduceLROnPlateau: mode must be "min" or "max"; received {mode!r}')
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f'ReduceLROnPlateau: threshold_mode must be "rel" or "abs"; received {threshold_mode!r}')
        if not 0 < factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must lie between 0 and 1; received {factor!r}")
        self.mode, self.threshold_mode, self.monitor = mode, threshold_mode, monitor
        self.factor = float(factor)
        self.patience = _count("ReduceLROnPlateau: patience", patience, least=0)
        self.threshold = _at_least_zero("ReduceLROnPlateau: threshold", threshold)
        self.cooldown = _count("ReduceLROnPlateau: cooldown", cooldown, least=0)
        self.min_lr = _at_least_zero("ReduceLROnPlateau: min_lr", min_lr)
        self.eps = _at_least_zero("ReduceLROnPlateau: eps", eps)
        self.reduced_lr: float | None = None
        self.reductions = 0
        self.best = math.inf if mode == "min" else -math.inf
        self.bad_epochs = 0
        self.cooling = 0

    def lr(self, t: int, base_lr: float) -> float:
        """The rate in force: this schedule depends on what it has seen, not on `t`."""
        for _ in range(self.reductions):
            base_lr = self._reduced(base_lr)
        return base_lr

    def _reduced(self, lr: float) -> float:
        new = max(lr * self.factor, self.min_lr)
        return new if lr - new > self.eps else lr

    def advance(self, logs: Mapping[str, float]) -> None:
        super().advance(logs)
        name = self.monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            raise ValueError(f"ReduceLROnPlateau: there is no figure {name!r} to watch; there are {', '.join(logs)}")
        self.observe(float(logs[name]))

    def observe(self, figure: float) -> None:
        """Counts one epoch that ended with `figure`."""
        if self._better(figure):
            self.best, self.bad_epochs = figure, 0
        else:
            self.bad_epochs += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            old = self.current()
            self.reductions += 1
            if self.current() != old:
                self.reduced_lr = self.current()
            self.cooling, self.bad_epochs = self.cooldown, 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if "reductions" not in state:  # that of one optimizer: as many as lead to its rate
            self.reductions = 0
            while self.reduced_lr is not None and self.reduced_lr < self.current() != self._reduced(self.current()):
                self.reductions += 1

    def _better(self, figure: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * figure > sign * self.best * (1 + sign * self.threshold)
        return sign * figure > sign * self.best + self.threshold


class LinearWarmup(Schedule):
    """A straight rise from start_factor * base_lr at t = 0 to base_lr at t = steps, then what `then` gives, counted
    from there.

    torch.optim.lr_scheduler.LinearLR(start_factor, 1.0, steps). then: another schedule that counts by the same unit and
    depends on its count alone, not on the figures or the length of the fit (ValueError); or None to stay at base_lr.
    """

    def __init__(self, steps: int, start_factor: float = 1 / 3, then: Schedule | None = None, by: By = "batch"):
        super().__init__(by)
        self.steps = _count("LinearWarmup: steps", steps)
        if not 0 < start_factor <= 1:
            raise ValueError(f"LinearWarmup: start_factor must lie in (0, 1]; received {start_factor!r}")
        self.start_factor = float(start_factor)
        if then is not None and then.remembered != Schedule.remembered:
            raise ValueError(
                f"LinearWarmup: then must depend on a count alone; {type(then).__name__} remembers "
                f"{', '.join(then.remembered)}"
            )
        if then is not None and then.by != by:
            raise ValueError(f'LinearWarmup: counts by {by}, but `then` by {then.by}; pass by="{then.by}"')
        self.then = then

    def lr(self, t: int, base_lr: float) -> float:
        if t < self.steps:
            return base_lr * (self.start_factor + (1 - self.start_factor) * t / self.steps)
        if self.then is None:
            return base_lr
        return self.then.lr(t - self.steps, base_lr if self.then.base_lr is None else self.then.base_lr)


def _count(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}; received {value!r}")
    return int(value)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above 0; received {value!r}")
    return float(value)


def _at_least_zero(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= 0; received {value!r}")
    return float(value)
