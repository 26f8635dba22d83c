"""`CompiledGraph`: a graph that is built and runs forward, backward and update. `tapeprop.LayerGraph` adds training to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import DeviceError, GraphError, NotBuiltError, ShapeError, StateError
from tapeprop.graph.auto_norm import norms_for
from tapeprop.graph.node import LayerNode
from tapeprop.graph.optimized import OptimizedGraph
from tapeprop.graph.weights import check_keys
from tapeprop.ir import Parameter, Shape
from tapeprop.layers.edits import edited, edits
from tapeprop.layers.sizes import open_shape
from tapeprop.runtime.diagnosis import Diagnosis
from tapeprop.runtime.listing import Listing
from tapeprop.runtime.machine import DEVICES, machine_of
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.network import CacheInfo, Network, Options, Trial
from tapeprop.runtime.state import Segment, cell, pack
from tapeprop.runtime.training import FitSession, Trainer, zero_gradients

if TYPE_CHECKING:
    from tapeprop.graph.drawing.picture import Picture

DTYPES = ("float32", "float64")
MATH_MODES = ("fp32", "winograd")
StepArguments = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[Any], Sequence[float]]


class CompiledGraph(OptimizedGraph):
    """A graph with a compiler: build(), forward(), backward(), update(). One thread runs it at a time; others wait."""

    def __init__(self, graph: Any = None, root: Any = None, term: Any = None, *, seed: int | None = None):
        self._unbuilt()
        self._auto_batch_norm = False
        self._random = Parameter((2,), self._random_start, trainable=False, dtype="int64", name="random state")
        super().__init__(graph, root, term, seed=seed)

    def _random_start(self) -> np.ndarray:
        sequence = np.random.SeedSequence(self.seed)
        return np.array([int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)), 0], dtype=np.int64)

    def _new(self, **options: Any) -> CompiledGraph:
        return CompiledGraph(**options)

    def __getstate__(self) -> dict[str, Any]:
        """Structure and weights; a copy has to be built anew, with fresh optimizer state."""
        dropped = (
            "_network", "_trainer", "_built_key", "_optimizers", "_running", "_synchronised", "_in_use", "_frozen", "_prepared",
            "_options",
        )  # fmt: skip
        return {name: value for name, value in super().__getstate__().items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._unbuilt()
        super().__setstate__(state)

    def _unbuilt(self) -> None:
        self._options = Options()
        self._network: Network | None = None
        self._trainer: Trainer | None = None
        self._built_version = -1
        self._built_key: tuple | None = None
        self._without_state()
        self._frozen: tuple[int, frozenset[Parameter]] = (-1, frozenset())

    # ---- build

    def build(
        self,
        input_shape: Any = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        workers: int | None = None,
        clip_norm: float | None = None,
        auto_batch_norm: bool = False,
        allow_dead: bool = False,
        debug_nan: bool = False,
        math_mode: str = "fp32",
    ) -> CompiledGraph:
        """Validates the graph, draws and packs its parameters and readies it to run; gives the graph itself.

        input_shape: with the batch, None for an open size; a list of shapes for several roots. Where it is None shapes are checked at
        the first forward(). Other batch sizes are accepted later. dtype: "float32" or "float64", of inputs, weights and results.
        workers: threads; by default the usable CPUs. clip_norm: gradients are scaled to at most this global norm at each update.
        device: "cpu", or "cuda" for an NVIDIA GPU (the extra `cuda`; see docs/cuda.md): DeviceError, which says what is missing, where
        there is none. math_mode: "winograd" computes 3 x 3 convolutions of stride 1 from 32 channels on with fewer products and an error of
        another kind (see `tapeprop.ops.lanes.winograd`), in batches of a multiple of 16 (float64: 8); "fp32" sums directly.
        auto_batch_norm: a BatchNorm behind each convolution and dense layer that only activations follow (see
        `tapeprop.graph.auto_norm`), until a build without it; its state keys are `<key of the layer>.auto_norm.weight` and so on, and
        it shares the layer's optimizer and is frozen with it. No layer, node or dict of yours is changed.
        allow_dead: nodes that lead to no term are left out instead of refused. debug_nan: raise NumericsError at the first
        instruction that makes a NaN or an infinity (slow). Rebuilding after an edit keeps the weights and optimizer
        state of the nodes that stay.

        CycleError, DisconnectedError, ShapeError, MergeError, DuplicateNameError and other GraphErrors name the nodes; the graph is then
        as it was: what has been built before goes on to work once the edits are taken back.
        """
        _check_options(dtype, device, workers, clip_norm, math_mode)
        with self._exclusive("build()"):
            before = self._allow_dead, self._norms
            self._allow_dead = allow_dead
            try:
                self.check()
                self._norms = norms_for(self) if auto_batch_norm else ()
                if self._norms:  # check() has looked at the keys without them
                    check_keys(self.walk())
                if input_shape is not None:
                    self._check_shapes(input_shape, dtype)
                self.seed_layers()
                options = Options(dtype, workers, clip_norm, debug_nan, math_mode=math_mode, device=device)
                network = self._network_for(options)
                pack([self._random, *(parameter for _, parameter in self.named_parameters())], dtype)
            except BaseException:
                self._allow_dead, self._norms = before
                raise
            if self._norms != before[1]:
                edited()  # whose parameters these are, and what they are called
            self._input_shape, self._auto_batch_norm = input_shape, bool(auto_batch_norm)
            self._install(network)
            self._stopped = self.stopped
            self._built_version, self._built_key = self.version, self._key
        return self

    def _network_for(self, options: Options) -> Network:
        return Network(
            self.trace_all,
            options,
            self._random,
            self._frozen_parameters,
            names=self._parameter_names,
            outline=self.outline,
        )

    def _install(self, network: Network) -> None:
        self._options, self._network = network.options, network
        self._trainer = Trainer(network, self._optimizers)
        missed = network.machine.take_home(self._buffers())
        for segment in self._segments():
            if segment.gradients in missed:  # what the host last saw of them belongs to another backward
                zero_gradients(segment.parameters)

    def _segments(self) -> set[Segment]:
        return {cell(p).segment for p in (self._random, *(p for _, p in self.named_parameters()))}

    def _buffers(self) -> list[Buffer]:
        """All that outlives a run: of parameters and optimizers."""
        own = [b for s in self._segments() for b in (s.values, s.gradients, s.pending)]
        return [*own, *self._optimizers.buffers()]

    def to(self, device: str) -> CompiledGraph:
        """Lets a built graph run on another device, "cuda" or "cpu"; gives the graph itself.

        Weights, gradients, optimizer and random state go along; a forward() that waits for its backward() is dropped. Views of `value`
        and `grad` of parameters stay live; on a device each that is held costs a copy there and back per run. DeviceError, and all stays
        as it was, where there is no such device. A device that was lost gives back what the host last saw: a RuntimeWarning says so.
        """
        self._compiled("to()")
        machine_of(device, self._options.workers, "to()")  # whose errors say so
        _check_options(
            self._options.dtype, device, self._options.workers, self._options.clip_norm, self._options.math_mode
        )
        with self._exclusive("to()"):
            if device != self._options.device:
                self._install(self._network_for(replace(self._options, device=device)))
        return self

    def on_device(self, array: Any, dtypes: Sequence[str], what: str) -> Any | None:
        """An array that lies on the graph's device as its tapes read it; None for one of the host. See `runtime.machine`."""
        network, _ = self._compiled(what)
        return network.machine.given(array, dtypes, what)

    @property
    def device(self) -> str:
        """Where the graph runs: "cpu" or "cuda"."""
        return self._options.device

    def _check_shapes(self, input_shape: Any, dtype: str) -> None:
        from tapeprop.ir import UndecidedError

        try:
            self.trace_open(input_shape, True, dtype)
        except UndecidedError:
            return  # what depends on open sizes is checked when they are known

    @property
    def built_(self) -> bool:
        """Whether the graph is built and has not been edited since, or all edits have been taken back."""
        version = self.version
        if self._built_version != version and self._built_key is not None and self._built_key == self._key:
            self._built_version = version
        return self._network is not None and self._built_version == version

    @property
    def dtype(self) -> str:
        """The dtype of inputs, weights and results."""
        return self._options.dtype

    def _compiled(self, what: str) -> tuple[Network, Trainer]:
        if self._network is None or self._trainer is None:
            raise NotBuiltError(f"{what}: the graph is not built; call build() first")
        if not self.built_:
            raise NotBuiltError(f"{what}: the graph was edited after build(); call build() again, weights are kept")
        return self._network, self._trainer

    def _frozen_parameters(self) -> frozenset[Parameter]:
        now = edits()
        if self._frozen[0] != now:
            frozen = self.frozen_parameters()
            for layer, norm in self._norms:
                if layer.weight in frozen:
                    frozen.update(parameter for _, parameter in norm.named_parameters())
            self._frozen = now, frozenset(frozen)
        return self._frozen[1]

    def _parameter_names(self) -> dict[Parameter, str]:
        return {parameter: name for name, parameter in self.named_parameters()}

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
        from tapeprop.ir import Tensor

        return self.trace(X) if isinstance(X, Tensor) else self.forward(X, is_train)

    def infer(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One array per term in evaluation mode, nothing kept for backward; arrays: one per root, of the graph's dtype."""
        network, _ = self._compiled("predict()")
        with self._exclusive("predict()"):
            return network.predict(list(arrays))

    def _inputs(self, X: Any) -> list[np.ndarray]:
        found: list[Any] = []
        network = self._network
        assert network is not None  # callers have looked
        for root, x in zip(self.roots, self.arrange_inputs(X, "X"), strict=True):
            if not (type(x) is np.ndarray and x.dtype == self.dtype and x.flags.c_contiguous and x.size):
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

    def build_options(self) -> dict[str, Any] | None:
        """What build() was given, as far as it does not depend on the machine; None before the first build."""
        if self._network is None:
            return None
        options = self._options
        return {
            "input_shape": self._input_shape,
            "dtype": options.dtype,
            "clip_norm": options.clip_norm,
            "auto_batch_norm": self._auto_batch_norm,
            "allow_dead": self._allow_dead,
            "debug_nan": options.debug_nan,
            "math_mode": options.math_mode,
        }

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
        """Many steps per native call over whole arrays: see `runtime.training.FitSession`."""
        _, trainer = self._compiled("fit()")

        def ready() -> None:  # callbacks may have edited the graph
            if self._compiled("fit()")[1] is not trainer:
                raise StateError("fit(): the graph was built anew during the run; build() it before or after")
            self.synchronise_optimizers()

        with self._exclusive("fit()"):
            ready()
            return trainer.fit_session(arrays, labels, losses, weights, batch_size, accuracy, accumulate, ready)

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


def _check_options(dtype: str, device: str, workers: int | None, clip_norm: float | None, math_mode: str) -> None:
    if dtype not in DTYPES:
        raise GraphError(f"build: expected dtype 'float32' or 'float64', got {dtype!r}")
    if device not in DEVICES:
        raise DeviceError(f"build: expected device 'cpu' or 'cuda', got {device!r}")
    if workers is not None and (not isinstance(workers, int | np.integer) or isinstance(workers, bool) or workers < 1):
        raise GraphError(f"build: expected workers >= 1 or None, got {workers!r}")
    if clip_norm is not None and not (isinstance(clip_norm, int | float) and np.isfinite(clip_norm) and clip_norm > 0):
        raise GraphError(f"build: expected clip_norm > 0 or None, got {clip_norm!r}")
    if math_mode not in MATH_MODES:
        raise GraphError(f"build: expected math_mode {' or '.join(map(repr, MATH_MODES))}, got {math_mode!r}")
    if device != "cpu" and math_mode != "fp32":
        raise GraphError(
            f"build: expected math_mode 'fp32' with device {device!r}, got {math_mode!r}, which is the CPU's"
        )
