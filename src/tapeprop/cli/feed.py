"""What a graph from the command line is fed with to be measured: inputs, labels and losses, the user's own or random ones.

A Python file that defines a graph may define `profile_data()` as well: it gives (X, y) or (X, y, loss), one batch as `train_step()` takes
it; y None profiles predict(). Without it inputs are random numbers of the shape that is known best: that of --input-shape, that of the
graph's build(), that of the source, or what the first layers expect. Labels are random, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.cli.source import Source, guarded, user_code

if TYPE_CHECKING:
    from tapeprop.layers import Layer
    from tapeprop.losses import Loss

__all__ = ["BATCH", "Feed", "feed", "loss_names", "shape"]

BATCH = 32
DATA = "profile_data"
#: Sides of images, lengths of series: those of well-known data first.
SIDES = (32, 28, 64, 16, 8, 224, 96, 128, 256, 299, 227)
LARGEST_SIDE = 64
AUTO, NONE = "auto", "none"
_LOSSES = {
    "cross-entropy": "CrossEntropy", "nll": "NLL", "kl-divergence": "KLDivergence", "binary-cross-entropy": "BinaryCrossEntropy",
    "mse": "MSE", "mae": "MAE", "hinge": "Hinge", "huber": "Huber",
}  # fmt: skip

Shape = tuple[int, ...]
Open = tuple[int | None, ...]


@dataclass(frozen=True)
class Feed:
    """One batch, as `train_step(X, y, loss)` takes it; y and loss are None for predict(). shapes: of the inputs."""

    X: Any
    y: Any
    loss: Any
    shapes: list[Shape]


def loss_names() -> list[str]:
    """What --loss takes."""
    return [AUTO, NONE, *_LOSSES]


def shape(value: str) -> Shape:
    """The shape in "32,1,8,8", for argparse."""
    try:
        found = tuple(int(size) for size in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, received {value!r}") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes of at least 1, received {value!r}")
    return found


def feed(source: Source, shapes: Sequence[Shape] | None, batch: int | None, loss: str = AUTO, seed: int = 0) -> Feed:
    """A batch for the graph; what had to be assumed is told on stderr.

    shapes: of --input-shape, one for each root. batch: of --batch-size. loss: one of `loss_names()`. ValueError where the shape of the
    input cannot be known, or what was given does not fit the graph or itself.
    """
    own = getattr(source.module, DATA, None)
    if own is not None and not shapes:
        return _own(own, source, batch, loss)
    graph = source.graph
    found = _shapes(source, shapes, batch)
    outputs = _output(source, found)
    rng = np.random.default_rng(seed)
    X = [rng.standard_normal(sizes, dtype=np.float32) for sizes in found]
    if loss == NONE:
        return Feed(graph.present_inputs(X), None, None, found)
    made = [_loss(loss, sizes) for sizes in outputs]
    y = [_labels(each, sizes, rng) for each, sizes in zip(made, outputs, strict=True)]
    several = isinstance(graph.term, list)
    _say(f"labels: random, for {', '.join(sorted({type(each).__name__ for each in made}))}")
    return Feed(graph.present_inputs(X), y if several else y[0], made if several else made[0], found)


# ---- the user's own


def _own(maker: Any, source: Source, batch: int | None, loss: str) -> Feed:
    name = f"{source.name.rpartition(':')[0]}:{DATA}"
    with user_code(f"{name}()"):
        given = maker()
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise ValueError(f"{name}: expected (X, y) or (X, y, loss), received {_kind(given)}")
    X, y, own_loss = (*given, None)[:3]
    X, y = (_first(value, batch) for value in (X, y))
    shapes = [np.shape(x) for x in source.graph.arrange_inputs(X, f"{name}: X")]
    _say(f"data: {name}(), {', '.join(map(_shown, shapes))}")
    if loss == NONE or y is None:
        return Feed(X, None, None, shapes)
    if loss != AUTO or own_loss is None:
        made = [_loss(loss, sizes) for sizes in _output(source, shapes)]
        own_loss = made if isinstance(source.graph.term, list) else made[0]
        _say(f"loss: {own_loss!r}")
    return Feed(X, y, own_loss, shapes)


def _first(value: Any, batch: int | None) -> Any:
    """The first samples of all arrays inside; all without a batch size."""
    if value is None or batch is None:
        return value
    if isinstance(value, Mapping):
        return {key: _first(item, batch) for key, item in value.items()}
    if isinstance(value, list | tuple) and all(isinstance(item, np.ndarray) or item is None for item in value):
        return [_first(item, batch) for item in value]
    return np.asarray(value)[:batch]


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


# ---- shapes


def _shapes(source: Source, given: Sequence[Shape] | None, batch: int | None) -> list[Shape]:
    graph = source.graph
    if given:
        if len(given) != len(graph.roots):
            names = ", ".join(map(graph.label_of, graph.roots))
            raise ValueError(
                f"expected --input-shape for each of {len(graph.roots)} inputs ({names}), received {len(given)}"
            )
        for sizes in given:
            if batch is not None and sizes[0] != batch:
                raise ValueError(f"--input-shape {_shown(sizes)} and --batch-size {batch} differ; give one of them")
        return list(given)
    for known, where in _known(source):
        if batch is not None:
            known = [(batch, *sizes[1:]) for sizes in known]
        if all(size is not None for sizes in known for size in sizes):
            found = [tuple(size for size in sizes if size is not None) for sizes in known]
            _say(f"input: {', '.join(map(_shown, found))}, {where}")
            return found
        return _filled(source, known, where)
    raise ValueError(
        f"{source.name}: the first layers do not tell the shape of the input; give --input-shape, as 32,3,32,32"
    )


def _known(source: Source) -> Iterator[tuple[list[Open], str]]:
    """What is known of the shapes, the best first, and where from."""
    graph = source.graph
    built = graph.build_options() or {}
    if built.get("input_shape") is not None:
        yield [tuple(sizes) for sizes in _listed(graph, built["input_shape"])], "as the graph was built"
    if source.input_shape is not None:
        yield [source.input_shape], f"as {source.name} wants it"
    expected = graph.expected_inputs()
    if expected is None:
        first = [_first_size(node.layer) for node in graph.roots]
        expected = [sizes for sizes in first if sizes is not None] if None not in first else None
    if expected is not None:
        yield expected, "as the first layers expect it"


def _listed(graph: Any, given: Any) -> list[Any]:
    if isinstance(graph.root, list) and isinstance(given, tuple):
        given = [given]
    return graph.arrange_inputs(given, "input shape")


def _first_size(layer: Layer) -> Open | None:
    """The shape of the input where a layer begins with Flatten or Reshape, or is a graph; None where that does not tell."""
    from tapeprop.layers import Flatten, Reshape

    for leaf in _leaves(layer):
        expected = leaf.expected_input()
        if expected is not None:
            return expected
        if isinstance(leaf, Reshape) and -1 not in leaf.shape:
            return None, int(np.prod(leaf.shape))
        if not isinstance(leaf, Flatten) and not leaf.keeps_shape:
            return None
    return None


def _leaves(layer: Layer) -> Iterator[Layer]:
    """The layers inside, in the order in which an input meets them; of a graph inside only those of its root."""
    from tapeprop.graph import GraphStructure
    from tapeprop.layers import Sequential

    if isinstance(layer, Sequential):
        for _, child in layer.children():
            yield from _leaves(child)
    elif isinstance(layer, GraphStructure) and len(layer.roots) == 1:
        yield from _leaves(layer.roots[0].layer)
    else:
        yield layer


def _output(source: Source, shapes: Sequence[Shape]) -> list[Shape]:
    """The shape of each output. GraphError where the inputs do not fit; ValueError for what a user's layer raises."""
    graph = source.graph
    with guarded(source.name):
        found = graph.out_shape(graph.present_inputs(list(shapes)))
    return found if isinstance(graph.term, list) else [found]


def _filled(source: Source, known: Sequence[Open], where: str) -> list[Shape]:
    """The open sizes of `known` by the first side that the whole graph takes."""
    from tapeprop.errors import GraphError

    refused = None
    open_sides = any(size is None for sizes in known for size in sizes[1:])
    for side in dict.fromkeys((*SIDES, *range(LARGEST_SIDE, 0, -1))) if open_sides else (0,):
        found = [tuple(size or (side if axis else BATCH) for axis, size in enumerate(sizes)) for sizes in known]
        try:
            _output(source, found)
        except GraphError as error:
            refused = refused or error
            continue
        assumed = "batch and sides are" if open_sides else "the batch is"
        _say(f"input: {', '.join(map(_shown, found))}, {where}; {assumed} assumed, --input-shape says otherwise")
        return found
    raise ValueError(
        f"{source.name}: the shape of the input is not known; give --input-shape, as 32,3,32,32 ({refused})"
    )


# ---- labels


def _loss(name: str, output: Shape) -> Loss:
    from tapeprop import losses

    if name == AUTO:
        return losses.CrossEntropy() if len(output) == 2 and output[1] > 1 else losses.MSE()
    return getattr(losses, _LOSSES[name])()


def _labels(loss: Loss, output: Shape, rng: np.random.Generator) -> np.ndarray:
    from tapeprop import losses

    if loss.accuracy == "argmax" and len(output) > 1:
        return rng.integers(0, output[1], (output[0], *output[2:]))
    if isinstance(loss, losses.BinaryCrossEntropy | losses.Hinge):
        return rng.integers(0, 2, output)
    return rng.standard_normal(output, dtype=np.float32)


def _shown(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
