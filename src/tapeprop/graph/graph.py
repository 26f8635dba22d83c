"""`CompiledGraph`: a graph that is built and runs forward, backward and update. `tapeprop.LayerGraph` adds training to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError, StateError
from tapeprop.graph.built import BuiltGraph
from tapeprop.graph.node import LayerNode
from tapeprop.ir import Shape, Tensor
from tapeprop.layers.sizes import open_shape
from tapeprop.runtime.diagnosis import Diagnosis
from tapeprop.runtime.fit_session import FitSession
from tapeprop.runtime.listing import Listing
from tapeprop.runtime.network import Network
from tapeprop.runtime.plans import CacheInfo, Trial, is_input
from tapeprop.runtime.state import zero_gradients

if TYPE_CHECKING:
    from tapeprop.graph.drawing.picture import Picture

StepArguments = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[Any], Sequence[float]]


class CompiledGraph(BuiltGraph):
    """A graph that runs: forward(), backward(), update(). One thread runs it at a time; others wait."""

    def _new(self, **options: Any) -> CompiledGraph:
        return CompiledGraph(**options)

    # ---- running

    def forward(self, X: Any, is_train: bool = False) -> Any:
        """The output for X: a fresh array, or a list of them where `term` is a list.

        X: an array, or a list or dict by node name for several roots; real numbers, cast to the graph's dtype. is_train: batch norm and
        dropout behave as in training, here and in the backward() that follows.
        """
        network, _ = self._compiled("forward()")
        arrays = self._inputs(X)
        with self._exclusive("forward()"):
            return self.present_outputs(network.forward(arrays, bool(is_train)))

    def __call__(self, X: Any, is_train: bool = False) -> Any:
        """forward(X, is_train); on a Tensor, the graph as a layer."""
        return self.trace(X) if isinstance(X, Tensor) else self.forward(X, is_train)

    def infer(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One array per term in evaluation mode, nothing kept for backward; arrays: one per root, of the graph's dtype."""
        network, _ = self._compiled("predict()")
        with self._exclusive("predict()"):
            return network.predict(list(arrays))

    def is_batch(self, X: Any, most: int) -> bool:
        """Whether X is an array that infer([X]) takes as it stands, of at most `most` rows, and the graph has one root and one term."""
        listed = isinstance(self._root, list) or isinstance(self._term, list)
        return not listed and is_input(X, self.dtype) and X.ndim > 0 and len(X) <= most

    def _inputs(self, X: Any) -> list[np.ndarray]:
        found: list[Any] = []
        network = self._network
        assert network is not None  # callers have looked
        for root, x in zip(self.roots, self.arrange_inputs(X, "X"), strict=True):
            if not is_input(x, self.dtype):
                x = network.take(x, self.dtype, f"node {self.label_of(root)!r}: input")
            found.append(x)
        return found

    def backward(self, d_out: Any = None) -> Any:
        """The gradient of the inputs, given that of the outputs of the last forward(); None means ones.

        d_out: an array, or a list or dict by node name, None where no gradient comes from an output. Gradients of parameters are added to
        those not yet consumed by update() or dropped by zero_grad(). StateError without a matching forward().
        """
        network, _ = self._compiled("backward()")
        with self._exclusive("backward()"):
            kinds = network.outputs_of_last_forward("backward()")
            if d_out is None:
                seeds: list[np.ndarray | None] = [np.ones(shape, dtype) for shape, dtype in kinds]
            else:
                seeds = []
                for term, value, (shape, dtype) in zip(self.terms, self.arrange_outputs(d_out), kinds, strict=True):
                    if value is None:
                        seeds.append(None)
                        continue
                    array = network.take(value, dtype, f"node {self.label_of(term)!r}: d_out")
                    if array.shape != shape:
                        raise ShapeError(
                            f"node {self.label_of(term)!r}: expected d_out of the output's shape {shape}, got {array.shape}"
                        )
                    seeds.append(array)
            return self.present_inputs(network.backward(seeds))

    @property
    def random_counter(self) -> np.ndarray:
        """(Seed, calls so far), int64 (2,), from which dropout draws: a live view."""
        return self._random.value

    def set_random_counter(self, values: np.ndarray) -> None:
        """Sets (seed, calls so far)."""
        self._random.assign(values)

    def update(self) -> None:
        """Lets the optimizers advance the parameters whose gradients are not yet consumed. StateError without an optimizer."""
        _, trainer = self._compiled("update()")
        with self._exclusive("update()"):
            self.synchronise_optimizers()
            trainer.update()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self._compiled("zero_grad()")
        with self._exclusive("zero_grad()"):
            zero_gradients([p for _, p in self.named_parameters() if p.trainable])

    # ---- what training runs on

    def fit_session(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        losses: Sequence[Any],
        weights: Sequence[float],
        batch_size: int,
        *,
        accuracy: bool = False,
        accumulate: int = 1,
    ) -> FitSession:
        """Many steps per native call over whole arrays: see `runtime.fit_session.FitSession`."""
        _, trainer = self._compiled("fit()")

        def ready() -> None:  # callbacks may have edited the graph
            if self._compiled("fit()")[1] is not trainer:
                raise StateError("fit(): the graph was built anew during the run; build() it before or after")
            self.synchronise_optimizers()

        with self._exclusive("fit()"):
            ready()
            return FitSession(trainer, arrays, labels, losses, weights, batch_size, accuracy, accumulate, ready)

    def native_step(self, step: StepArguments) -> float:
        """One training step on (arrays, labels, losses, weights) that are checked already; the total loss."""
        _, trainer = self._compiled("train_step()")
        with self._exclusive("train_step()"):
            self.synchronise_optimizers()
            return trainer.train_step(*step)

    @contextmanager
    def trial_step(self, step: StepArguments) -> Iterator[Trial]:
        """A training step on checked arrays, to be run inside; the state is put back afterwards."""
        _, trainer = self._compiled("profile()")
        with self._exclusive("profile()"):
            self.synchronise_optimizers()
            with trainer.trial(*step) as trial:
                yield trial

    @contextmanager
    def trial_predict(self, arrays: Sequence[np.ndarray]) -> Iterator[Trial]:
        """What predict() runs on checked arrays, to be run inside."""
        network, _ = self._compiled("profile()")
        with self._exclusive("profile()"), network.lock:
            found, executable = network.predict_plan(tuple(a.shape for a in arrays))
            for tensor, array in zip(found.inputs, arrays, strict=True):
                executable.bind(tensor, array)
            try:
                yield Trial(network, executable)
            finally:
                executable.release()

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shape of each output for inputs of these shapes. ShapeError."""
        network, _ = self._compiled("the graph")
        return network.output_shapes(tuple(shapes))

    # ---- whole states

    def state_dict(self) -> dict[str, np.ndarray]:
        """{`<name or node<i>>.<parameter>`: a copy of its value}, running statistics included, between two steps."""
        with self._exclusive("state_dict()"):
            return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets all parameters, or none, between two steps.

        GraphError, ShapeError, DTypeError and NumericsError name the key.
        """
        with self._exclusive("load_state_dict()"):
            super().load_state_dict(state)

    # ---- looking inside

    def watch(self, *nodes: LayerNode) -> None:
        """From the next forward() on, value(node) and gradient(node) can be read. Each call names all nodes; none ends it."""
        network, _ = self._compiled("watch()")
        computed = set(self.check().order)
        for node in nodes:
            self._expect(node, "watch")
            if node not in computed:
                raise GraphError(
                    f"watch: node {self.labels[node]!r} leads to no term and is left out; connect it first"
                )
        with self._exclusive("watch()"):
            network.watch(nodes)

    def value(self, node: LayerNode) -> np.ndarray:
        """A copy of a watched node's result after the last forward(). StateError where it is not watched."""
        network, _ = self._compiled("value()")
        self._expect_watched(node, network, "value()")
        with self._exclusive("value()"):
            return network.value(node)

    def gradient(self, node: LayerNode) -> np.ndarray:
        """A copy of the gradient of a watched node's result after the last backward(); zeros where none reached it."""
        network, _ = self._compiled("gradient()")
        self._expect_watched(node, network, "gradient()")
        with self._exclusive("gradient()"):
            return network.gradient(node)

    def _expect_watched(self, node: LayerNode, network: Network, what: str) -> None:
        self._expect(node, what)
        if node not in network.watching:
            raise StateError(f"{what}: node {self.labels[node]!r} is not watched; call watch(node) and forward() first")

    @property
    def tape(self) -> Listing:
        """The instructions of forward and backward in training, with shapes and places; print it.

        For the sizes of the last forward(), else those that build() was given, else as far as the first layers know them; open
        ones are shown as N, H, W.
        """
        network, _ = self._compiled("tape")
        with self._exclusive("tape"):
            return network.listing(self._shapes_to_show())

    def _picture(self, what: str, input_shape: Any) -> Picture:
        from tapeprop.graph.drawing.picture import tape_picture

        if what != "tape":
            return super()._picture(what, input_shape)
        if input_shape is not None:
            raise GraphError(
                "plot: the tape is drawn for the sizes of the last forward() or build(), not for input_shape"
            )
        return tape_picture(self.tape)

    def diagnose(self) -> Diagnosis:
        """What makes the tape slow, in words, as far as it can be told before it runs; print it. Empty where everything is fine.

        Of forward and backward in training, for the sizes of `tape`: layers that Python computes, a batch that does not fill vector
        lanes or is too small for the workers asked for, changes of layout and rows that few workers can share where they cost
        much, debug_nan. Each is a dict with row, span, op, node ("" for the whole tape), why and remedy. What a run spends its
        time on is told by `profile(...).diagnose()`.
        """
        network, _ = self._compiled("diagnose()")
        with self._exclusive("diagnose()"):
            return network.diagnosis(self._shapes_to_show())

    def _shapes_to_show(self) -> list[Shape] | None:
        if self._input_shape is not None:
            return self.open_shapes(self._input_shape)
        expected = self.expected_inputs()
        return None if expected is None else [open_shape(shape, i) for i, shape in enumerate(expected)]

    def cache_info(self) -> CacheInfo:
        """How often forward() found its plan (hits), had to make one (misses), and how many plans are kept (size)."""
        network, _ = self._compiled("cache_info()")
        return network.cache_info()
