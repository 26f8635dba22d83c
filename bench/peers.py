"""The networks of the benchmarks in torch, as one writes them there, with the weights of our graphs."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch
from compare import pinned_to
from measure import Contender
from networks import CLASSES, Network, without_dropout
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tapeprop import LayerGraph
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

RATE, MOMENTUM = 0.01, 0.9
STEPS = 3
#: Networks whose training steps draw random numbers.
DROPOUT = {"digits"}
Call = Callable[[], Tensor]
#: Of the losses of the first `STEPS` steps, relative, against torch in float64. float32 rounds at 6e-8; sums of up to
#: 65,536 terms, variances and three updates multiply that by some hundreds in either framework.
TOLERANCE = 1e-4


def _normalised(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]


class Digits(nn.Module):
    """`tapeprop.cli.digits.digits_network`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normalised(1, 16, 3), nn.ReLU())
        self.refine = nn.Sequential(*_normalised(16, 16, 3), nn.ReLU(), *_normalised(16, 16, 3))
        self.narrow = nn.Sequential(*_normalised(16, 16, 1), nn.ReLU())
        self.wide = nn.Sequential(*_normalised(16, 16, 3), nn.ReLU())
        self.head = nn.Sequential(
            *_normalised(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(512, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.refine(x) + x)
        return self.head(functional.max_pool2d(torch.cat([self.narrow(x), self.wide(x)], 1), 2))


class Chain(nn.Module):
    """64 residual nodes x + tanh(Linear(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(16, 16) for _ in range(64)])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = x + torch.tanh(step(x))
        return self.head(x)


class MLP(nn.Sequential):
    """784-256-128-10."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES)
        )  # fmt: skip


class LeNet(nn.Sequential):
    """LeNet-5 with ReLU and maxima."""

    def __init__(self) -> None:
        images = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        images += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)]
        super().__init__(*images, *dense)


class Branches(nn.Module):
    """Three convolutions of one image, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList([nn.Conv2d(3, c, 3, padding=1) for c in (6, 12, 18)])
        self.joined, self.head = nn.Conv2d(36, 36, 3, padding=1), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(side(x)) for side in self.sides], 1)
        return self.head(torch.relu(self.joined(y)).mean((2, 3)))


class Block(nn.Module):
    """A residual block of ResNet-20; the shortcut of one that changes the shape is a projection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.inner = nn.Sequential(
            *_normalised(inputs, outputs, 3, stride), nn.ReLU(), *_normalised(outputs, outputs, 3)
        )
        self.short = nn.Sequential(*_normalised(inputs, outputs, 1, stride) if stride > 1 else ())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.short(x))


class ResNet20(nn.Sequential):
    """ResNet-20 for 32x32 images."""

    def __init__(self) -> None:
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        blocks = [Block(a, b) for a, b in pairwise(widths)]
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
        super().__init__(*_normalised(3, 16, 3), nn.ReLU(), *blocks, *end)


class VGG(nn.Sequential):
    """Six 3x3 convolutions and two dense layers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, width in ((3, 64), (64, 128), (128, 256)):
            for a in (inputs, width):
                layers += [nn.Conv2d(a, width, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, CLASSES))


MODULES: dict[str, type[nn.Module]] = {
    "digits": Digits,
    "chain": Chain,
    "mlp": MLP,
    "lenet": LeNet,
    "branches": Branches,
    "resnet20": ResNet20,
    "vgg": VGG,
}


def copied(graph: LayerGraph, name: str) -> nn.Module:
    """The torch module of that name in training mode, with the weights and running statistics of a built graph.

    Both name their parameters in the same order, and the layouts are torch's. Our momentum is the fraction of running
    statistics that is kept, 0.9, and torch's the fraction of the new, 0.1; torch's running variance is the unbiased one.
    """
    module = MODULES[name]().train()
    numbers = [p for p in module.buffers() if p.dtype.is_floating_point]  # the others count batches
    for theirs, trained in ((list(module.parameters()), True), (numbers, False)):
        ours = [p for _, p in graph.named_parameters() if p.trainable == trained]
        if [p.shape for p in ours] != [tuple(p.shape) for p in theirs]:
            raise ValueError(f"{name}: {[p.shape for p in ours]} here, {[tuple(p.shape) for p in theirs]} in torch")
        with torch.no_grad():
            for mine, its in zip(ours, theirs):
                its.copy_(torch.from_numpy(np.array(mine.value)))
    return module


def step_of(module: nn.Module, x: np.ndarray, y: np.ndarray, channels_last: bool = False) -> Call:
    """A call that makes one training step on the batch and gives the loss, as a tensor so that nothing waits for it."""
    module, images = laid_out(module, x, channels_last)
    labels = torch.from_numpy(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def forward_of(module: nn.Module, x: np.ndarray, channels_last: bool = False) -> Call:
    """A call that gives the output for the batch in evaluation mode, without anything for backward."""
    module, images = laid_out(module.eval(), x, channels_last)

    def forward() -> Tensor:
        with torch.inference_mode():
            return module(images)

    return forward


def laid_out(module: nn.Module, x: np.ndarray, channels_last: bool) -> tuple[nn.Module, Tensor]:
    """Module and samples, these in the module's dtype, both in channels_last if asked for."""
    samples = torch.from_numpy(x).to(next(module.parameters()).dtype)
    if not channels_last:
        return module, samples
    return module.to(memory_format=torch.channels_last), samples.contiguous(memory_format=torch.channels_last)


def contenders(
    make: Callable[[bool, bool], Call], network: Network, compiled: bool, alike: bool = True
) -> tuple[list[Contender], float | None]:
    """(torch's: eager, channels_last where there are images, and compiled; the seconds of compiling).

    make(channels_last, compiled): the call. What is compiled gets images in channels_last: ResNet-20's step took 203 ms
    with these and 280 with NCHW. Where compiling fails a line says so. alike: whether the results of its first calls have
    to be those of eager; dropout draws others.
    """
    images = len(network.shape) == 4
    found = [Contender("torch", make(False, False))]
    if images:
        found.append(Contender("torch channels_last", make(True, False)))
    if not compiled:
        return found, None
    start = time.perf_counter()
    try:
        call = make(images, True)
        first = call()
    except Exception as error:  # anything that Dynamo, Inductor and the C++ compiler may raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        print(f"{network.name}: torch.compile is left out, {type(error).__name__}: {reason}", file=sys.stderr)
        return found, None
    seconds = time.perf_counter() - start
    if alike:
        its = [first, *(call() for _ in range(STEPS - 1))]
        eagers = [found[0].call() for _ in range(STEPS)]
        worst = max(difference(a.numpy(), b.numpy()) for a, b in zip(its, eagers))
        if not worst <= TOLERANCE:
            raise ArithmeticError(f"{network.name}: results of torch.compile and of torch differ by {worst:.1e}")
    return [*found, Contender("torch.compile", call)], seconds


def flops(call: Call) -> int:
    """Operations of the convolutions and matrix products of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def jax(threads: int) -> ModuleType | None:
    """The networks in JAX; None, and a line that says why, where it is not there or cannot be held to so many threads."""
    if importlib.util.find_spec("jax") is None:
        print("JAX is left out: it is not installed", file=sys.stderr)
    elif not pinned_to(threads):
        print(f"JAX is left out: it uses all CPUs of the process, which are not {threads}", file=sys.stderr)
    else:
        import jax_peers

        return jax_peers
    return None


def first_losses(network: Network, jax: ModuleType | None = None) -> dict[str, list[float]]:
    """{side: loss after each of the first steps} from the same weights, without dropout; "exact" is torch in float64."""
    graph = without_dropout(network.graph()).build(network.shape, workers=1)
    graph.set_optimizer(SGD(RATE, momentum=MOMENTUM))
    x, y = network.data()
    steps: dict[str, Callable[[], object]] = {}
    for side, dtype in (("torch", torch.float32), ("exact", torch.float64)):
        module = copied(graph, network.name).to(dtype)
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        steps[side] = step_of(module, x, y)
    if jax is not None:
        steps["jax"] = jax.step_of(graph, network.name, x, y, dropout=False)
    loss = CrossEntropy()
    steps["ours"] = lambda: graph.train_step(x, y, loss)
    return {side: [float(step()) for _ in range(STEPS)] for side, step in steps.items()}  # type: ignore[arg-type]


def difference(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def check(network: Network, jax: ModuleType | None = None) -> dict[str, float]:
    """{side: largest relative difference of its first losses from torch's in float64}. ArithmeticError beyond TOLERANCE."""
    found = first_losses(network, jax)
    exact = found.pop("exact")
    worst = {side: max(abs(a - b) / abs(b) for a, b in zip(losses, exact)) for side, losses in found.items()}
    if not all(value <= TOLERANCE for value in worst.values()):
        raise ArithmeticError(f"{network.name}: losses {found} differ from {exact}, which torch finds in float64")
    return worst
