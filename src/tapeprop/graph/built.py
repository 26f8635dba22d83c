"""`BuiltGraph`: what build() makes of a graph, on which device, and whether it still stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from tapeprop.errors import DeviceError, GraphError, NotBuiltError
from tapeprop.graph.auto_norm import norms_for
from tapeprop.graph.optimized import OptimizedGraph
from tapeprop.graph.weights import check_keys
from tapeprop.ir import Parameter, UndecidedError
from tapeprop.layers.edits import edited, edits
from tapeprop.runtime.machine import DEVICES, machine_of
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.network import Network
from tapeprop.runtime.plans import Options
from tapeprop.runtime.state import Segment, cell, pack, zero_gradients
from tapeprop.runtime.training import Trainer

DTYPES = ("float32", "float64")
MATH_MODES = ("fp32", "winograd")


class BuiltGraph(OptimizedGraph):
    """A graph with a compiler: build(), and what it is built for."""

    def __init__(self, graph: Any = None, root: Any = None, term: Any = None, *, seed: int | None = None):
        self._unbuilt()
        self._auto_batch_norm = False
        self._random = Parameter((2,), self._random_start, trainable=False, dtype="int64", name="random state")
        super().__init__(graph, root, term, seed=seed)

    def _random_start(self) -> np.ndarray:
        sequence = np.random.SeedSequence(self.seed)
        return np.array([int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)), 0], dtype=np.int64)

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
    ) -> Self:
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

    def to(self, device: str) -> Self:
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
