"""Optimizers: update rules written once as expressions, compiled into the tape, with PyTorch's trajectories.

An optimizer is a value, not a state: what changes from step to step (slots, learning rate, powers of beta) is the
graph's. A rule has two parts. `prepare` runs once per step in float64 on a few scalars; `rule` runs once per element
in the parameter's dtype. A new optimizer is a subclass that stores its constructor's arguments under their own names
and gives `rule`:

    from tapeprop import ops

    class SignSGD(Optimizer):
        def rule(self, weight, gradient, slots, scalars):
            return weight - scalars["lr"] * ops.sign(gradient), {}

A rule that needs more than one element (a norm, a mean) sets `elementwise = False`, and gets each parameter as a whole:

    class NormalizedSGD(Optimizer):
        elementwise = False

        def rule(self, weight, gradient, slots, scalars):
            norm = ops.sqrt(ops.sum(gradient * gradient))
            return weight - scalars["lr"] * gradient / (norm + 1e-8), {}
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Self

from tapeprop import ops
from tapeprop.ir import Tensor
from tapeprop.ops.scalar import Scalar

__all__ = ["SGD", "AdaDelta", "AdaGrad", "AdaMax", "Adam", "AdamW", "Lion", "NAdam", "Optimizer", "RMSProp"]

Scalars = Mapping[str, Scalar]
Expression = Scalar | Tensor
Expressions = Mapping[str, Expression]


class Optimizer:
    """The base of all update rules. lr: the learning rate that a graph starts with, finite and >= 0.

    ValueError where a hyper-parameter is out of its range, TypeError where it is no real number.
    """

    #: Whether `rule` is one formula for every element, given as Scalars, so that neighbours in memory are one instruction. If
    #: not it gets Tensors of each parameter's own shape, one after another, and may sum over them.
    elementwise: ClassVar[bool] = True
    #: Names of the per-element states, each an array of the parameter's shape and dtype.
    slots: tuple[str, ...] = ()
    #: Names of the constructor's arguments that live in `hyper()`, so that a change of theirs compiles nothing.
    editable: ClassVar[tuple[str, ...]] = ("lr",)

    def __init__(self, lr: float = 0.01):
        self.lr = at_least_zero("lr", lr)

    def hyper(self) -> dict[str, float]:
        """The float64 scalars that the graph keeps from step to step, with their initial values; "lr" is always one."""
        return {"lr": self.lr}

    def slot_initial(self, name: str) -> float:
        """The value that the slot `name` starts with."""
        return 0.0

    def prepare(self, scalars: Scalars) -> dict[str, Scalar]:
        """What one step makes of the scalars of `hyper()`, in float64: their new values, and any others that `rule`
        wants.

        Scalars that it does not name stay as they are.
        """
        return {}

    def rule(
        self, weight: Expression, gradient: Expression, slots: Expressions, scalars: Expressions
    ) -> tuple[Expression, dict[str, Expression]]:
        """(the new weight, {slot: new value}), written in `tapeprop.ops`, in the parameter's dtype.

        Of one element, all of it Scalars, where `elementwise`; else of one parameter, Tensors of its shape and dtype, and
        scalars of shape (). scalars: those of `hyper()` and `prepare()` after the latter. Every slot has to be in the answer.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule(); give it one")

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, by name: plain numbers and bools."""
        parameters = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        missing = [p.name for p in parameters if not hasattr(self, p.name)]
        if missing or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(
                f"{type(self).__name__}: expected a constructor that stores each argument under its own name and "
                f"takes no *args or **kwargs, found {', '.join(missing) or 'such'}"
            )
        return {p.name: getattr(self, p.name) for p in parameters}

    def with_params(self, **params: Any) -> Self:
        """A copy with some of the constructor's arguments changed. TypeError for a name that it does not have."""
        config = self.config()
        unknown = sorted(params.keys() - config.keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}; it has {', '.join(config)}")
        return type(self)(**(config | params))

    def clone(self) -> Self:
        """A copy."""
        return self.with_params()

    def key(self) -> Hashable:
        """Equal for optimizers that compile to the same instructions: all but the `editable` arguments count."""
        config = self.config()
        return type(self), tuple((name, value) for name, value in config.items() if name not in self.editable)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013), as
    torch.optim.SGD.

    The buffer starts at the first gradient; weight_decay adds weight_decay * w to the gradient. nesterov wants a
    momentum.
    """

    def __init__(self, lr: float = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0):
        super().__init__(lr)
        self.momentum = at_least_zero("momentum", momentum)
        self.nesterov = bool(nesterov)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov=True needs a momentum above 0; received momentum=0")
        self.slots = ("momentum",) if self.momentum else ()

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        if not self.momentum:
            return weight - scalars["lr"] * gradient, {}
        buffer = self.momentum * slots["momentum"] + gradient  # from 0, so that the first buffer is the first gradient
        step = gradient + self.momentum * buffer if self.nesterov else buffer
        return weight - scalars["lr"] * step, {"momentum": buffer}


class RMSProp(Optimizer):
    """Gradients over the root of a running mean of their squares (Tieleman and Hinton 2012), as torch.optim.RMSprop
    (rho: alpha). weight_decay as for SGD.
    """

    def __init__(
        self,
        lr: float = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr)
        self.rho = fraction("rho", rho)
        self.epsilon = at_least_zero("epsilon", epsilon)
        self.momentum = at_least_zero("momentum", momentum)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)
        self.slots = ("square", "momentum") if self.momentum else ("square",)

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        square = running_mean(slots["square"], gradient * gradient, self.rho)
        step = gradient / (ops.sqrt(square) + self.epsilon)
        if not self.momentum:
            return weight - scalars["lr"] * step, {"square": square}
        buffer = self.momentum * slots["momentum"] + step
        return weight - scalars["lr"] * buffer, {"square": square, "momentum": buffer}


class _Moments(Optimizer):
    """What the Adam family shares: two decay rates, an epsilon, a decay of weights."""

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr)
        self.beta1 = fraction("beta1", beta1)
        self.beta2 = fraction("beta2", beta2)
        self.epsilon = at_least_zero("epsilon", epsilon)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)


class Adam(_Moments):
    """Adaptive moments with bias correction (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980), as
    torch.optim.Adam. weight_decay as for SGD: added to the gradient, so that the moments see it.
    """

    slots = ("mean", "square")

    def hyper(self) -> dict[str, float]:
        return {"lr": self.lr, "beta1_power": 1.0, "beta2_power": 1.0}

    def prepare(self, scalars):
        beta1_power, beta2_power = scalars["beta1_power"] * self.beta1, scalars["beta2_power"] * self.beta2
        return {
            "beta1_power": beta1_power,
            "beta2_power": beta2_power,
            "step_size": scalars["lr"] / (1 - beta1_power),
            "root_scale": 1 / ops.sqrt(1 - beta2_power),
        }

    def rule(self, weight, gradient, slots, scalars):
        return self._advanced(weight, decayed(gradient, weight, self.weight_decay), slots, scalars)

    def _advanced(self, weight, gradient, slots, scalars):
        mean = running_mean(slots["mean"], gradient, self.beta1)
        square = running_mean(slots["square"], gradient * gradient, self.beta2)
        step = mean / (ops.sqrt(square) * scalars["root_scale"] + self.epsilon)
        return weight - scalars["step_size"] * step, {"mean": mean, "square": square}


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), as
    torch.optim.AdamW.
    """

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(lr, beta1, beta2, epsilon, weight_decay)

    def prepare(self, scalars):
        return {**super().prepare(scalars), "keep": 1 - scalars["lr"] * self.weight_decay}

    def rule(self, weight, gradient, slots, scalars):
        return self._advanced(weight * scalars["keep"], gradient, slots, scalars)


class NAdam(_Moments):
    """Adam with Nesterov's momentum (Dozat 2016), as torch.optim.NAdam. weight_decay as for SGD.

    (Which keeps its product of momenta in torch's default dtype: in float32 its float64 trajectories are off by 3e-10.)
    """

    slots = ("mean", "square")

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        momentum_decay: float = 4e-3,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr, beta1, beta2, epsilon, weight_decay)
        self.momentum_decay = at_least_zero("momentum_decay", momentum_decay)

    def hyper(self) -> dict[str, float]:
        return {"lr": self.lr, "beta2_power": 1.0, "decay_power": 1.0, "mu_product": 1.0}

    def prepare(self, scalars):
        decay = 0.96**self.momentum_decay
        beta2_power, decay_power = scalars["beta2_power"] * self.beta2, scalars["decay_power"] * decay
        mu, next_mu = self.beta1 * (1 - 0.5 * decay_power), self.beta1 * (1 - 0.5 * decay * decay_power)
        mu_product = scalars["mu_product"] * mu
        return {
            "beta2_power": beta2_power,
            "decay_power": decay_power,
            "mu_product": mu_product,
            "root_scale": 1 / ops.sqrt(1 - beta2_power),
            "gradient_size": scalars["lr"] * (1 - mu) / (1 - mu_product),
            "mean_size": scalars["lr"] * next_mu / (1 - mu_product * next_mu),
        }

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        mean = running_mean(slots["mean"], gradient, self.beta1)
        square = running_mean(slots["square"], gradient * gradient, self.beta2)
        step = scalars["gradient_size"] * gradient + scalars["mean_size"] * mean
        return weight - step / (ops.sqrt(square) * scalars["root_scale"] + self.epsilon), {
            "mean": mean,
            "square": square,
        }


class AdaMax(_Moments):
    """Adam with the infinity norm (Kingma and Ba 2015, section 7), as torch.optim.Adamax. weight_decay as for
    SGD.
    """

    slots = ("mean", "norm")

    def hyper(self) -> dict[str, float]:
        return {"lr": self.lr, "beta1_power": 1.0}

    def prepare(self, scalars):
        beta1_power = scalars["beta1_power"] * self.beta1
        return {"beta1_power": beta1_power, "step_size": scalars["lr"] / (1 - beta1_power)}

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        mean = running_mean(slots["mean"], gradient, self.beta1)
        norm = ops.maximum(self.beta2 * slots["norm"], ops.abs(gradient) + self.epsilon)
        return weight - scalars["step_size"] * mean / norm, {"mean": mean, "norm": norm}


class AdaGrad(Optimizer):
    """Gradients over the root of the sum of their squares (Duchi et al. 2011), as torch.optim.Adagrad.
    weight_decay as for SGD.
    """

    slots = ("sum",)

    def __init__(self, lr: float = 0.01, epsilon: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(lr)
        self.epsilon = at_least_zero("epsilon", epsilon)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        total = slots["sum"] + gradient * gradient
        return weight - scalars["lr"] * gradient / (ops.sqrt(total) + self.epsilon), {"sum": total}


class AdaDelta(Optimizer):
    """Steps scaled by a running mean of past steps (Zeiler 2012, https://arxiv.org/abs/1212.5701), as
    torch.optim.Adadelta. weight_decay as for SGD.
    """

    slots = ("square", "step_square")

    def __init__(self, lr: float = 1.0, rho: float = 0.95, epsilon: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(lr)
        self.rho = fraction("rho", rho)
        self.epsilon = at_least_zero("epsilon", epsilon)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)

    def rule(self, weight, gradient, slots, scalars):
        gradient = decayed(gradient, weight, self.weight_decay)
        square = running_mean(slots["square"], gradient * gradient, self.rho)
        step = ops.sqrt(slots["step_square"] + self.epsilon) / ops.sqrt(square + self.epsilon) * gradient
        step_square = running_mean(slots["step_square"], step * step, self.rho)
        return weight - scalars["lr"] * step, {"square": square, "step_square": step_square}


class Lion(Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2); sign(0)
    = 0. weight_decay is decoupled, as AdamW's.
    """

    slots = ("mean",)

    def __init__(self, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0):
        super().__init__(lr)
        self.beta1 = fraction("beta1", beta1)
        self.beta2 = fraction("beta2", beta2)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)

    def prepare(self, scalars):
        return {"keep": 1 - scalars["lr"] * self.weight_decay} if self.weight_decay else {}

    def rule(self, weight, gradient, slots, scalars):
        if self.weight_decay:
            weight = weight * scalars["keep"]
        mixed = running_mean(slots["mean"], gradient, self.beta1)
        sign = ops.where(mixed < 0, -1, ops.where(mixed > 0, 1, mixed))  # its last case keeps 0 and NaN
        return weight - scalars["lr"] * sign, {"mean": running_mean(slots["mean"], gradient, self.beta2)}


def decayed(gradient: Expression, weight: Expression, weight_decay: float) -> Expression:
    """gradient + weight_decay * weight: the gradient of a loss with weight_decay / 2 times the sum of squares added."""
    return gradient + weight_decay * weight if weight_decay else gradient


def running_mean(mean: Expression, value: Expression, keep: float) -> Expression:
    """keep * mean + (1 - keep) * value."""
    return keep * mean + (1 - keep) * value


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, received {value!r}")
    return float(value)


def at_least_zero(name: str, value: Any) -> float:
    """`value` as a float. ValueError unless it is finite and >= 0; TypeError where it is no real number."""
    number = _real(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: expected a finite number >= 0, received {value!r}")
    return number


def fraction(name: str, value: Any) -> float:
    """`value` as a float. ValueError unless 0 <= value < 1; TypeError where it is no real number."""
    number = _real(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), received {value!r}")
    return number
