"""The networks of the benchmarks in JAX, written plainly, with the weights of our graphs; images are NHWC.

XLA's convolutions for CPUs want channels last. Whole training steps and forward passes are each one jitted function,
whose training state is donated, so that XLA may update it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from peers import MOMENTUM, RATE

from tapeprop import LayerGraph

KEPT, EPSILON = 0.9, 1e-5
#: (C, H, W) of what is flattened before the first dense layer, whose weights are put into the order of NHWC.
FLATTENED = {"digits": (32, 4, 4), "lenet": (16, 5, 5), "vgg": (256, 4, 4)}


class Reader:
    """Hands the layers of a network their weights in order, and gathers the running statistics that they leave.

    key: what dropout draws from; None lets everything through.
    """

    def __init__(self, weights: Sequence[Array], statistics: Sequence[Array], training: bool, key: Array | None = None):
        self.weights, self.statistics = iter(weights), iter(statistics)
        self.training, self.key = training, key
        self.left: list[Array] = []

    def conv(self, x: Array, stride: int = 1, same: bool = True, bias: bool = True) -> Array:
        """A convolution, with torch's zeros around: size // 2 on every side, or none."""
        kernel = next(self.weights)
        padding = [(n // 2 if same else 0,) * 2 for n in kernel.shape[:2]]
        y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + next(self.weights) if bias else y

    def dense(self, x: Array) -> Array:
        """x @ weight + bias."""
        return x @ next(self.weights) + next(self.weights)

    def normalised(self, x: Array, stride: int = 1) -> Array:
        """A convolution without bias, and batch norm."""
        x = self.conv(x, stride, bias=False)
        scale, shift = next(self.weights), next(self.weights)
        mean, variance = next(self.statistics), next(self.statistics)
        if self.training:
            batch_mean, batch_variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.left += [KEPT * mean + (1 - KEPT) * batch_mean, KEPT * variance + (1 - KEPT) * batch_variance]
            mean, variance = batch_mean, batch_variance
        return (x - mean) * lax.rsqrt(variance + EPSILON) * scale + shift

    def dropout(self, x: Array, rate: float) -> Array:
        """Zeros for that share of the elements in training, the others scaled up."""
        if self.key is None:
            return x
        return jnp.where(jax.random.bernoulli(self.key, 1 - rate, x.shape), x / (1 - rate), 0)


relu = jax.nn.relu


def pooled(x: Array) -> Array:
    """Maxima of 2x2 windows."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def flat(x: Array) -> Array:
    """(N, H * W * C)."""
    return x.reshape(len(x), -1)


def digits(read: Reader, x: Array) -> Array:
    """`tapeprop.cli.digits.digits_network`."""
    x = relu(read.normalised(x))
    x = relu(read.normalised(relu(read.normalised(x))) + x)
    x = pooled(jnp.concatenate([relu(read.normalised(x)), relu(read.normalised(x))], -1))
    return read.dense(read.dropout(flat(relu(read.normalised(x))), 0.25))


def chain(read: Reader, x: Array) -> Array:
    """64 residual nodes x + tanh(dense(x))."""
    for _ in range(64):
        x = x + jnp.tanh(read.dense(x))
    return read.dense(x)


def mlp(read: Reader, x: Array) -> Array:
    """784-256-128-10."""
    return read.dense(relu(read.dense(relu(read.dense(x)))))


def lenet(read: Reader, x: Array) -> Array:
    """LeNet-5 with ReLU and maxima."""
    x = pooled(relu(read.conv(x)))
    x = flat(pooled(relu(read.conv(x, same=False))))
    return read.dense(relu(read.dense(relu(read.dense(x)))))


def branches(read: Reader, x: Array) -> Array:
    """Three convolutions of one image, concatenated."""
    x = jnp.concatenate([relu(read.conv(x)) for _ in range(3)], -1)
    return read.dense(relu(read.conv(x)).mean((1, 2)))


def resnet20(read: Reader, x: Array) -> Array:
    """ResNet-20 for 32x32 images, with projections as shortcuts."""
    x = relu(read.normalised(x))
    for before, after in pairwise((16, 16, 16, 16, 32, 32, 32, 64, 64, 64)):
        stride = 1 if before == after else 2
        inner = read.normalised(relu(read.normalised(x, stride)))
        x = relu(inner + (read.normalised(x, stride) if stride > 1 else x))
    return read.dense(x.mean((1, 2)))


def vgg(read: Reader, x: Array) -> Array:
    """Six 3x3 convolutions and two dense layers."""
    for _ in range(3):
        x = pooled(relu(read.conv(relu(read.conv(x)))))
    return read.dense(relu(read.dense(flat(x))))


NETWORKS: dict[str, Callable[[Reader, Array], Array]] = {
    function.__name__: function for function in (digits, chain, mlp, lenet, branches, resnet20, vgg)
}


def weights(graph: LayerGraph, name: str) -> list[Array]:
    """A built graph's trained parameters in their order: kernels as (H, W, I, O), dense weights as (in, out)."""
    found, images = [], FLATTENED.get(name)
    for _, parameter in graph.named_parameters():
        if not parameter.trainable:
            continue
        value = np.array(parameter.value)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            if images is not None:
                value = value.reshape(-1, *images).transpose(0, 2, 3, 1).reshape(len(value), -1)
                images = None
            value = value.T
        found.append(jnp.array(value))
    return found


def statistics(graph: LayerGraph) -> list[Array]:
    """Its running means and variances."""
    return [jnp.array(np.array(p.value)) for _, p in graph.named_parameters() if not p.trainable]


def laid_out(x: np.ndarray) -> Array:
    """Samples as JAX gets them: images in NHWC."""
    return jnp.array(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


def step_of(graph: LayerGraph, name: str, x: np.ndarray, y: np.ndarray, dropout: bool = True) -> Callable[[], Array]:
    """A call that makes one training step on the batch and gives the loss when that is done."""
    network = NETWORKS[name]

    def loss_of(parameters, running, samples, labels, key):
        read = Reader(parameters, running, True, key)
        chances = jax.nn.log_softmax(network(read, samples))
        return -jnp.take_along_axis(chances, labels[:, None], 1).mean(), read.left

    @partial(jax.jit, donate_argnums=0)
    def step(state, samples, labels):
        parameters, momenta, running, key = state
        own = None
        if key is not None:
            key, own = jax.random.split(key)
        (loss, running), slopes = jax.value_and_grad(loss_of, has_aux=True)(parameters, running, samples, labels, own)
        momenta = [MOMENTUM * m + g for m, g in zip(momenta, slopes)]
        parameters = [p - RATE * m for p, m in zip(parameters, momenta)]
        return (parameters, momenta, running, key), loss

    parameters = weights(graph, name)
    key = jax.random.key(0) if dropout and name == "digits" else None
    state = (parameters, [jnp.zeros_like(p) for p in parameters], statistics(graph), key)
    samples, labels = laid_out(x), jnp.array(y.astype(np.int32))

    def call() -> Array:
        nonlocal state
        state, loss = step(state, samples, labels)
        return loss.block_until_ready()

    return call


def forward_of(graph: LayerGraph, name: str, x: np.ndarray) -> Callable[[], Array]:
    """A call that gives the output for the batch in evaluation mode when it is done."""
    forward = jax.jit(lambda parameters, running, samples: NETWORKS[name](Reader(parameters, running, False), samples))
    parameters, running, samples = weights(graph, name), statistics(graph), laid_out(x)
    return lambda: forward(parameters, running, samples).block_until_ready()
