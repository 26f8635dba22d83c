"""The layout pass: chains of image ops run with vector lanes along the batch.

An activation (N, C, H, W) whose batch is a multiple of L, the elements of a vector register or two, is held as a tensor
(N / L, C, H, W, L): then a pixel is a vector or two, whatever the number of channels, padding and stride; no masks, no tails, and
weights are read as they are. Since that is just a tensor of one more axis, most ops run on it unchanged. The pass rewrites what it
can, follows each tensor's two forms, and converts where an op wants the other one. It never changes what a program computes, only
the order of some sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tapeprop.ir import Instruction, Program, Size, Span, Tensor, reachable
from tapeprop.ops.lanes import (
    conv2d_lanes,
    conv2d_lanes_input_grad,
    conv2d_lanes_weight_grad,
    from_lanes,
    to_lanes,
)
from tapeprop.ops.op import record
from tapeprop.ops.shape import expand, reshape
from tapeprop.targets.cpu import machine

LANES = {"float32": 16, "float64": 8}  # 64 bytes: one vector of the widest machines, a cache line of all

CONVOLUTIONS = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad")


@dataclass(frozen=True)
class BatchLanes:
    """The size of axis 0 of activations, which may be open, and the lanes that it is cut into."""

    batch: Size
    lanes: int


def batch_lanes(dtype: str, batch: int, size: Size | None = None) -> BatchLanes | None:
    """How a batch of this size is cut into lanes, or None where it does not fill them. size: what stands for it in shapes.

    Where a vector has half of `LANES` or less, batches that fill only half of them will do.
    """
    for lanes in (LANES[dtype], LANES[dtype] // 2):
        if batch % lanes == 0 and (lanes == LANES[dtype] or machine.lanes(dtype) <= lanes):
            return BatchLanes(batch if size is None else size, lanes)
    return None


def use_lanes(
    program: Program,
    batch: Size,
    lanes: int,
    made: set[Tensor] | None = None,
    *,
    flexible: int = 0,
    known: Mapping[Tensor, Tensor] | None = None,
) -> Program:
    """The program with its image ops in the batch-lane layout; itself where it has no convolution that gains by it.

    batch: the size of axis 0 of activations. made: the tensors that a program which ran before made in lanes; those of this one are
    added. flexible: how many of the last outputs may be left in the lane layout; `in_lanes` of
    the result maps those that are to their plain tensors. known: {plain tensor: its lane form}, from a program that ran before.
    """
    made = set() if made is None else made
    if not made and not any(_fits_convolution(call) for call in program.instructions):
        return program
    return _Rewriter(batch, lanes, made, known or {}).run(program, flexible)


def _fits_convolution(call: Instruction) -> bool:
    attributes = call.attributes
    return call.op.name in CONVOLUTIONS and attributes["groups"] == 1 and attributes["dilation"] == (1, 1)


class _Rewriter:
    """One walk over a program. `forms` holds the lane form of tensors that have one; `unmade` those that have nothing else.

    What is done with a tensor follows from how it was `made`, never from the forms it happens to have: forward and backward apart
    then do just what they do in one program, and the order of every sum is the same. The span "loss" is kept plain, as
    a caller's loss is.
    """

    def __init__(self, batch: Size, lanes: int, made: set[Tensor], known: Mapping[Tensor, Tensor]):
        self.batch = batch
        self.lanes = lanes
        self.made = made
        self.forms: dict[Tensor, Tensor] = dict(known)
        self.unmade: set[Tensor] = set(known)
        self.out: list[Instruction] = []
        self.node = ""
        self.pooled: dict[tuple, Tensor] = {}
        self.rules: dict[str, Callable[[Instruction], bool]] = {
            "conv2d": self._conv2d,
            "conv2d_input_grad": self._conv2d_input_grad,
            "conv2d_weight_grad": self._conv2d_weight_grad,
            "max_pool2d": self._max_pool2d,
            "max_pool2d_grad": self._max_pool2d_grad,
            "avg_pool2d": self._avg_pool2d,
            "avg_pool2d_grad": self._avg_pool2d,
            "batch_norm": self._batch_norm,
            "batch_norm_grad": self._batch_norm_grad,
            "elementwise": self._elementwise,
            "concat": self._concat,
            "slice": self._slice,
            "reduce": self._reduce,
            "expand": self._expand,
            "reshape": self._reshape,
            "stop_gradient": self._same_op,
            "copy": self._same_op,
        }

    def run(self, program: Program, flexible: int) -> Program:
        spans = []
        for span in program.spans:
            self.out = []
            for call in span.instructions:
                self.node = call.node
                rule = None if span.name == "loss" else self.rules.get(call.op.name)
                if rule is None or not rule(call):
                    self._keep(call)
            for store in span.stores:
                self.plain(store.value)
            spans.append(Span(span.name, self.out, list(span.stores)))
        outputs = list(program.outputs)
        in_lanes: dict[Tensor, Tensor] = {}
        self.node = ""
        for i, tensor in enumerate(outputs):
            if tensor in self.unmade and i >= len(outputs) - flexible:
                outputs[i] = self.forms[tensor]
                in_lanes[outputs[i]] = tensor
            else:
                self.plain(tensor)
        return Program(spans, program.inputs, outputs, in_lanes)

    # ---- the two forms of a tensor

    def batched(self, tensor: Tensor, rank: int = 2) -> bool:
        """Whether the tensor's axis 0 is the batch and it has at least `rank` axes."""
        return tensor.ndim >= rank and tensor.shape[0] == self.batch

    def plain(self, tensor: Tensor) -> Tensor:
        """The tensor itself, converted back first where only its lane form was made."""
        if tensor in self.unmade:
            self.unmade.discard(tensor)
            (made,) = self.emit(lambda form: from_lanes(form, self.batch), self.forms[tensor])
            self.rename(made, tensor)
        return tensor

    def laned(self, tensor: Tensor) -> Tensor:
        """The lane form of a tensor, converted where there is none yet."""
        if tensor not in self.forms:
            (self.forms[tensor],) = self.emit(lambda x: to_lanes(x, self.lanes), tensor)
        return self.forms[tensor]

    # ---- emitting

    def emit(self, function: Callable[..., Tensor | Sequence[Tensor]], *operands: Tensor) -> tuple[Tensor, ...]:
        """Records `function` of the operands and takes over the instructions it made."""
        found = function(*operands)
        results = (found,) if isinstance(found, Tensor) else tuple(found)
        for call in reachable(results, operands):
            call.node = self.node
            self.out.append(call)
        return results

    def rename(self, made: Tensor, wanted: Tensor) -> None:
        """Lets the instruction that makes `made` make `wanted` instead: whoever reads that tensor goes on doing so."""
        call = next(call for call in reversed(self.out) if made in call.results)
        call.results = tuple(wanted if result is made else result for result in call.results)

    def make(self, call: Instruction, result: int, form: Tensor) -> None:
        """Notes that result `result` of `call` was made in its lane form."""
        self.forms[call.results[result]] = form
        self.unmade.add(call.results[result])
        self.made.add(call.results[result])

    def _keep(self, call: Instruction) -> None:
        for operand in call.operands:
            self.plain(operand)
        self.out.append(call)

    # ---- convolutions and pools

    def _conv2d(self, call: Instruction) -> bool:
        if not (_fits_convolution(call) and self.batched(call.operands[0])):
            return False
        x, w, *b = call.operands
        for parameter in (w, *b):
            self.plain(parameter)
        stride, padding = call.attributes["stride"], call.attributes["padding"]
        (y,) = self.emit(lambda *t: conv2d_lanes(*t, stride=stride, padding=padding), self.laned(x), w, *b)
        self.make(call, 0, y)
        return True

    def _conv2d_input_grad(self, call: Instruction) -> bool:
        if not (_fits_convolution(call) and self.batched(call.operands[0])):
            return False
        (dy, w), at = call.operands, call.attributes
        self.plain(w)
        (dx,) = self.emit(
            lambda d, k: conv2d_lanes_input_grad(d, k, at["size"], at["stride"], at["padding"]), self.laned(dy), w
        )
        self.make(call, 0, dx)
        return True

    def _conv2d_weight_grad(self, call: Instruction) -> bool:
        if not (_fits_convolution(call) and self.batched(call.operands[0])):
            return False
        (x, dy), at = call.operands, call.attributes
        (dw,) = self.emit(
            lambda a, d: conv2d_lanes_weight_grad(a, d, at["kernel"], at["stride"], at["padding"]),
            self.laned(x),
            self.laned(dy),
        )
        self.rename(dw, call.results[0])
        return True

    def _pools(self, call: Instruction) -> bool:
        if "dilation" in call.attributes:
            return False
        return all(self.batched(t, 4) for t in call.operands) and any(t in self.made for t in call.operands)

    def _max_pool2d(self, call: Instruction) -> bool:
        if not self._pools(call):
            return False
        (x,) = call.operands
        self.pooled.pop(self._pool_key(x, call), None)  # one of an earlier span may be gone by now: see `recompute`
        self.make(call, 0, self._pooled(x, call))
        return True

    @staticmethod
    def _pool_key(x: Tensor, call: Instruction) -> tuple:
        return (x, *(call.attributes[name] for name in ("size", "stride", "padding")))

    def _pooled(self, x: Tensor, call: Instruction) -> Tensor:
        """The lane form of the pooled x; the one that stands already, where the forward pass is in the same program."""
        key = self._pool_key(x, call)
        if key not in self.pooled:
            attributes = {**call.attributes, "activation": None}
            (self.pooled[key],) = self.emit(lambda t: record("max_pool2d_lanes", [t], attributes)[0], self.laned(x))
        return self.pooled[key]

    def _max_pool2d_grad(self, call: Instruction) -> bool:
        if not self._pools(call):
            return False
        x, dy = call.operands
        y = self._pooled(x, call)
        (dx,) = self.emit(
            lambda *t: record("max_pool2d_lanes_grad", t, call.attributes)[0], self.laned(x), y, self.laned(dy)
        )
        self.make(call, 0, dx)
        return True

    def _avg_pool2d(self, call: Instruction) -> bool:
        if not self._pools(call):
            return False
        name = call.op.name.replace("avg_pool2d", "avg_pool2d_lanes")
        (y,) = self.emit(lambda t: record(name, [t], call.attributes)[0], self.laned(call.operands[0]))
        self.make(call, 0, y)
        return True

    # ---- batch norm: the statistics of (G, C, H * W * L) are those of (N, C, H, W)

    def _flat(self, tensor: Tensor) -> Tensor:
        form = self.laned(tensor)
        (flat,) = self.emit(lambda t: reshape(t, (t.shape[0], t.shape[1], -1)), form)
        return flat

    def _batch_norm(self, call: Instruction) -> bool:
        x, *vectors = call.operands
        if not (self.batched(x, 3) and x in self.made):
            return False
        form, flat = self.laned(x), self._flat(x)
        y, *rest = self.emit(lambda *t: record("batch_norm", t, call.attributes), flat, *map(self.plain, vectors))
        for made, wanted in zip(rest, call.results[1:], strict=True):
            self.rename(made, wanted)
        (y,) = self.emit(lambda t: reshape(t, form.shape), y)
        self.make(call, 0, y)
        return True

    def _batch_norm_grad(self, call: Instruction) -> bool:
        dy, x, *vectors = call.operands
        if not (self.batched(x, 3) and x in self.made):
            return False
        form, flat = self.laned(x), self._flat(x)
        operands = [self._flat(dy), flat, *map(self.plain, vectors)]
        dx, *rest = self.emit(lambda *t: record("batch_norm_grad", t, call.attributes), *operands)
        for made, wanted in zip(rest, call.results[1:], strict=True):
            self.rename(made, wanted)
        (dx,) = self.emit(lambda t: reshape(t, form.shape), dx)
        self.make(call, 0, dx)
        return True

    # ---- ops that take a further axis as it is

    def _elementwise(self, call: Instruction) -> bool:
        shape = call.results[0].shape
        if not (self.batched(call.results[0], 3) and any(t.shape == shape and t in self.made for t in call.operands)):
            return False
        operands = [self._broadcast(operand, len(shape)) for operand in call.operands]
        results = self.emit(lambda *t: record(call.op, t, call.attributes), *operands)
        for i, result in enumerate(results):
            self.make(call, i, result)
        return True

    def _broadcast(self, operand: Tensor, rank: int) -> Tensor:
        """The operand in a form that broadcasts beside lane forms of tensors of this rank."""
        if operand.ndim == rank and operand.shape[0] == self.batch:
            return self.laned(operand)
        self.plain(operand)
        if not operand.shape or all(n == 1 for n in operand.shape):
            return operand
        (form,) = self.emit(lambda t: reshape(t, (*t.shape, 1)), operand)
        return form

    def _concat(self, call: Instruction) -> bool:
        if call.attributes["axis"] == 0 or not all(self.batched(t, 3) for t in call.operands):
            return False
        if not any(t in self.made for t in call.operands):
            return False
        (y,) = self.emit(lambda *t: record(call.op, t, call.attributes), *map(self.laned, call.operands))
        self.make(call, 0, y)
        return True

    def _slice(self, call: Instruction) -> bool:
        (x,), at = call.operands, call.attributes
        whole = at["starts"][0] == 0 and at["steps"][0] == 1 and at["sizes"][0] == self.batch
        if not (whole and self.batched(x, 3) and x in self.made):
            return False
        form = self.laned(x)
        attributes = {
            "starts": (*at["starts"], 0),
            "sizes": (form.shape[0], *at["sizes"][1:], self.lanes),
            "steps": (*at["steps"], 1),
        }
        (y,) = self.emit(lambda t: record(call.op, [t], attributes)[0], form)
        self.make(call, 0, y)
        return True

    def _reduce(self, call: Instruction) -> bool:
        (x,), at = call.operands, call.attributes
        if not (self.batched(x, 3) and x in self.made):
            return False
        form, axes = self.laned(x), tuple(at["axes"])
        if 0 not in axes:
            (y,) = self.emit(lambda t: record(call.op, [t], at)[0], form)
            self.make(call, 0, y)
            return True
        (y,) = self.emit(lambda t: record(call.op, [t], {**at, "axes": (*axes, form.ndim - 1)})[0], form)
        if at["keepdims"]:
            (y,) = self.emit(lambda t: reshape(t, call.results[0].shape), y)
        self.rename(y, call.results[0])
        return True

    def _expand(self, call: Instruction) -> bool:
        (x,), shape = call.operands, call.results[0].shape
        if not (self.batched(x, 4) and self.batched(call.results[0], 4) and x.ndim == len(shape)):
            return False
        form = self.laned(x)
        wanted = (form.shape[0], *shape[1:], self.lanes)
        (y,) = self.emit(lambda t: expand(t, wanted, mean=call.attributes["mean"]), form)
        self.make(call, 0, y)
        return True

    def _reshape(self, call: Instruction) -> bool:
        (x,), shape = call.operands, call.results[0].shape
        if not (self.batched(x) and x in self.made and self.batched(call.results[0])):
            return False
        form = self.laned(x)
        (y,) = self.emit(lambda t: reshape(t, (form.shape[0], *shape[1:], self.lanes)), form)
        self.make(call, 0, y)
        return True

    def _same_op(self, call: Instruction) -> bool:
        (x,) = call.operands
        if x not in self.made:
            return False
        (y,) = self.emit(lambda t: record(call.op, [t], call.attributes)[0], self.laned(x))
        self.make(call, 0, y)
        return True
