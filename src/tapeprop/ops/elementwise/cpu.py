"""The CPU kernel of elementwise ops: one generated loop for any expressions, operands broadcast or strided.

The kernel is void kernel(i64 row, i64 worker, i64 workers). Words of the row from 4 on: the inner length, the product
of the outer sizes, the outer sizes; then for each operand, inputs before outputs: its address, its outer strides in
elements and, if it is "strided", its inner stride; if it is "gathered", the address of its int32 positions. `fields`
writes them.

Work is cut into grains of `GRAIN` elements of the inner dimension, each worker taking a contiguous range of them; as
every element is computed alone, in IEEE operations, the results have the same bits for any number of workers and any
length. Outputs may alias inputs of the same layout: each vector is read before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir

from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.ops.expression import Encoded, Scalar, decode, emit, inputs_of, ordered
from tapeprop.targets.cpu.kernel import AssemblyKernel
from tapeprop.targets.cpu.vector_math import VectorMath

__all__ = ["CLASSES", "GRAIN", "fields", "loop", "loop_text"]

#: How an operand runs along the inner dimension.
CLASSES = ("vector", "uniform", "strided", "gathered", "scalar64")
#: Elements of the inner dimension that a worker takes at a time: fixed, so that rows of equal sizes are cut alike.
GRAIN = 1024
#: Those with a word more: an inner stride, or the address of a table.
ONE_MORE = ("strided", "gathered")
BITS = {"float32": 32, "float64": 64}
MOST_OUTER = 6

I64, POINTER = ir.IntType(64), ir.PointerType()
Value = Any  # an llvmlite.ir value


def loop(
    *,
    expressions: Encoded,
    inputs: int,
    outputs: int,
    dtype: str,
    classes: tuple[str, ...],
    outer: int,
    lanes: int | None = None,
) -> AssemblyKernel:
    """The kernel that computes `outputs` encoded expressions over `inputs` numbered operands; see `loop_text`."""
    text = loop_text(
        symbol="elementwise",
        expressions=expressions,
        inputs=inputs,
        outputs=outputs,
        dtype=dtype,
        classes=classes,
        outer=outer,
        lanes=lanes,
    )
    return AssemblyKernel(text, "elementwise")


def loop_text(
    *,
    symbol: str,
    expressions: Encoded,
    inputs: int,
    outputs: int,
    dtype: str,
    classes: Sequence[str],
    outer: int,
    lanes: int | None = None,
) -> str:
    """LLVM IR text of one kernel function `symbol`.

    expressions: of `tapeprop.ops.scalar.encode`, one root per output. dtype: "float32" or "float64", of the arithmetic
    and of every operand but "scalar64" ones. classes: for each input, then each output: "vector" (contiguous along the
    inner dimension), "uniform" (one element, read once per inner run), "strided", "gathered" (an input whose elements lie
    where a table of positions says; no outer dimensions then), or "scalar64" (an input of one float64 element, read once
    and rounded to dtype). outer: the number of outer dimensions. lanes: elements per vector,
    by default those of 512 bits. ValueError for a description that does not hold together.
    """
    roots = decode(expressions)
    _check(roots, inputs, outputs, dtype, classes, outer)
    module = ir.Module(name=symbol)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), symbol)
    bits = BITS[dtype]
    _Loop(function, roots, inputs, classes, outer, bits, lanes or 512 // bits).build()
    return str(module)


def fields(
    inner: int,
    outer: Sequence[int],
    classes: Sequence[str],
    addresses: Sequence[Any],
    strides: Sequence[Sequence[int]],
) -> list[Any]:
    """The words of a row from word 4 on.

    inner, outer: the sizes. addresses: one per operand, or what later becomes one. strides: per operand its outer
    strides in elements and, if it is "strided", the inner one, if it is "gathered", the address of the positions.
    ValueError where their number is wrong.
    """
    count = 1
    for size in outer:
        count *= size
    words: list[Any] = [inner, count, *outer]
    for kind, address, steps in zip(classes, addresses, strides, strict=True):
        expected = len(outer) + (kind in ONE_MORE)
        if len(steps) != expected:
            raise ValueError(f"a {kind} operand of {len(outer)} outer dimensions has {expected} strides, got {steps}")
        words += [address, *steps]
    return words


def _check(roots: Sequence[Scalar], inputs: int, outputs: int, dtype: str, classes: Sequence[str], outer: int) -> None:
    if dtype not in BITS:
        raise ValueError(f"elementwise loops compute in float32 or float64, not {dtype}")
    if len(roots) != outputs or len(classes) != inputs + outputs:
        raise ValueError(
            f"{outputs} outputs and {inputs} inputs need {outputs} expressions and {inputs + outputs} classes; "
            f"got {len(roots)} and {len(classes)}"
        )
    unknown = [kind for kind in classes if kind not in CLASSES]
    if unknown:
        raise ValueError(f"operand classes are {', '.join(CLASSES)}; got {unknown[0]!r}")
    if any(kind not in ("vector", "strided") for kind in classes[inputs:]):
        raise ValueError("an output is 'vector' or 'strided': a single element would be written many times")
    if outer and "gathered" in classes:
        raise ValueError("a 'gathered' operand has no outer dimensions")
    used = inputs_of(roots)
    if used and used[-1] >= inputs:
        raise ValueError(f"the expressions use input {used[-1]}, but there are {inputs} inputs")
    if not 0 <= outer <= MOST_OUTER:
        raise ValueError(f"an elementwise loop has 0 to {MOST_OUTER} outer dimensions, got {outer}")


class _Loop:
    """One kernel under construction. Blocks: entry, start (operands known), [outer loop,] inner loop, end."""

    def __init__(
        self,
        function: ir.Function,
        roots: Sequence[Scalar],
        inputs: int,
        classes: Sequence[str],
        outer: int,
        bits: int,
        lanes: int,
    ) -> None:
        self.function, self.roots, self.inputs, self.classes, self.outer = function, roots, inputs, classes, outer
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        self.words: Value = None
        self.math = VectorMath(self.b, bits, lanes)
        self.lanes = lanes
        used = set(inputs_of(roots))
        self.operands = [k for k in range(len(classes)) if k in used or k >= inputs]  # the others are never touched
        self.values: dict[int | Scalar, Value] = {}  # of inputs and nodes, as far as they are known
        self.ready = self._when_ready()

    def _when_ready(self) -> dict[Scalar, int]:
        """When each node can be computed: 0 once per call, 1 once per inner run, 2 for each vector."""
        levels = {"scalar64": 0, "uniform": 1 if self.outer else 0}
        ready: dict[Scalar, int] = {}
        for node in ordered(self.roots):
            if node.op == "input":
                ready[node] = levels.get(self.classes[int(node.value or 0)], 2)
            else:
                ready[node] = max((ready[a] for a in node.args), default=0)
        return ready

    # ---- pieces of IR

    def word(self, index: int) -> Value:
        """An int64 word of the row."""
        return self.b.load(self.b.gep(self.words, [I64(index)], source_etype=I64), typ=I64)

    def place(self, base: Value, offset: Value) -> Value:
        """The address `offset` elements after `base`."""
        return self.b.gep(base, [offset], source_etype=self.math.float_scalar)

    def block(self, name: str) -> ir.Block:
        return self.function.append_basic_block(name)

    def compute(self, level: int) -> None:
        """Emits the nodes that become known at `level`, before the loop that does not change them."""
        nodes = [node for node in ordered(self.roots) if self.ready[node] == level and node.args]
        self.values.update(zip(nodes, emit(nodes, self.math, self.values), strict=True))

    # ---- the kernel

    def build(self) -> None:
        """Emits the whole function."""
        b = self.b
        row, worker, workers = self.function.args
        self.words = b.inttoptr(row, POINTER)
        self.inner = self.word(FIRST_FIELD)
        chunks = b.udiv(b.add(self.inner, I64(GRAIN - 1)), I64(GRAIN))
        grains = b.mul(chunks, self.word(FIRST_FIELD + 1)) if self.outer else chunks
        first, last = self.share(grains, worker, workers)
        start, self.end = self.block("start"), self.block("end")
        b.cbranch(b.icmp_signed("<", first, last), start, self.end)
        b.position_at_end(start)
        self.read_operands()
        for k in self.operands:
            if self.classes[k] == "scalar64":
                self.values[k] = self.math.from_double(b.load(self.address[k], typ=ir.DoubleType(), align=8))
        if self.outer:
            self.compute(0)
            self.outer_loop(first, last, chunks)
        else:
            self.read_uniform(self.address)
            self.compute(0)
            stop = b.mul(last, I64(GRAIN))
            stop = b.select(b.icmp_signed("<", stop, self.inner), stop, self.inner)
            self.inner_loop(b.mul(first, I64(GRAIN)), stop, self.address)
            b.branch(self.end)
        ir.IRBuilder(self.end).ret_void()

    def share(self, grains: Value, worker: Value, workers: Value) -> tuple[Value, Value]:
        """This worker's grains [first, last): ceil(grains * worker / workers) and the same of its successor.

        Rounded up, so that worker 0, which is always there, gets a single grain. One worker skips the divisions.
        """
        b = self.b
        before, several, after = b.block, self.block("several"), self.block("shared")
        b.cbranch(b.icmp_signed("==", workers, I64(1)), after, several)
        b.position_at_end(several)
        round_up = b.sub(workers, I64(1))
        bounds = [b.udiv(b.add(b.mul(grains, w), round_up), workers) for w in (worker, b.add(worker, I64(1)))]
        b.branch(after)
        b.position_at_end(after)
        result = []
        for alone, bound in zip((I64(0), grains), bounds, strict=True):
            phi = b.phi(I64)
            phi.add_incoming(alone, before)
            phi.add_incoming(bound, several)
            result.append(phi)
        return result[0], result[1]

    def read_operands(self) -> None:
        """Loads sizes, addresses and strides from the row."""
        at = FIRST_FIELD + 2
        self.sizes = [self.word(at + d) for d in range(self.outer)]
        at += self.outer
        self.address: dict[int, Value] = {}
        self.strides: dict[int, list[Value]] = {}
        self.step: dict[int, Value] = {}
        for k, kind in enumerate(self.classes):
            if k in self.operands:
                self.address[k] = self.b.inttoptr(self.word(at), POINTER)
                if kind != "scalar64":
                    self.strides[k] = [self.word(at + 1 + d) for d in range(self.outer)]
                if kind in ONE_MORE:
                    self.step[k] = self.word(at + 1 + self.outer)
            at += 1 + self.outer + (kind in ONE_MORE)

    def read_uniform(self, bases: dict[int, Value]) -> None:
        """Broadcasts the element of every uniform operand at its base."""
        for k in self.operands:
            if self.classes[k] == "uniform":
                scalar = self.b.load(bases[k], typ=self.math.float_scalar, align=self.math.bits // 8)
                self.values[k] = self.math.broadcast(scalar)

    def outer_loop(self, first: Value, last: Value, chunks: Value) -> None:
        """Grains first to last - 1; grain = outer index * chunks + chunk of the inner dimension."""
        b = self.b
        # Allocas become registers. Stepping digits costs a few additions a grain; dividing its number, a division each.
        with b.goto_entry_block():
            chunk, grain = b.alloca(I64), b.alloca(I64)
            digits = [b.alloca(I64) for _ in self.sizes]
            offsets = {k: b.alloca(I64) for k in self.strides}
        index = b.udiv(first, chunks)
        b.store(b.sub(first, b.mul(index, chunks)), chunk)
        b.store(first, grain)
        total = {k: I64(0) for k in self.strides}
        for d in reversed(range(self.outer)):
            rest = b.udiv(index, self.sizes[d]) if d else I64(0)
            digit = b.sub(index, b.mul(rest, self.sizes[d]))
            b.store(digit, digits[d])
            for k in total:
                total[k] = b.add(total[k], b.mul(digit, self.strides[k][d]))
            index = rest
        for k, offset in offsets.items():
            b.store(total[k], offset)
        loop = self.block("grain")
        b.branch(loop)
        b.position_at_end(loop)
        bases = dict(self.address) | {k: self.place(self.address[k], b.load(offsets[k], typ=I64)) for k in offsets}
        self.read_uniform(bases)
        self.compute(1)
        begin = b.mul(b.load(chunk, typ=I64), I64(GRAIN))
        stop = b.add(begin, I64(GRAIN))
        stop = b.select(b.icmp_signed("<", stop, self.inner), stop, self.inner)
        self.inner_loop(begin, stop, bases)
        self.advance(chunk, chunks, digits, offsets)
        following = b.add(b.load(grain, typ=I64), I64(1))
        b.store(following, grain)
        b.cbranch(b.icmp_signed("<", following, last), loop, self.end)

    def advance(self, chunk: Value, chunks: Value, digits: list[Value], offsets: dict[int, Value]) -> None:
        """Steps to the next grain: the chunk, then the outer digits from the last to the first, as an odometer does."""
        b, done = self.b, self.block("advanced")
        for d, (counter, size) in enumerate([(chunk, chunks), *reversed(list(zip(digits, self.sizes, strict=True)))]):
            axis = self.outer - d  # of the digit; the chunk, at d = 0, has no strides
            following = b.add(b.load(counter, typ=I64), I64(1))
            b.store(following, counter)
            if d:
                for k, offset in offsets.items():
                    b.store(b.add(b.load(offset, typ=I64), self.strides[k][axis]), offset)
            if d == self.outer:  # past the end the first digit need not wrap
                break
            carry = self.block("carry")
            b.cbranch(b.icmp_signed("<", following, size), done, carry)
            b.position_at_end(carry)
            b.store(I64(0), counter)
            if d:
                for k, offset in offsets.items():
                    back = b.mul(self.strides[k][axis], size)
                    b.store(b.sub(b.load(offset, typ=I64), back), offset)
        b.branch(done)
        b.position_at_end(done)

    def inner_loop(self, begin: Value, stop: Value, bases: dict[int, Value]) -> None:
        """Elements begin to stop - 1, begin < stop, of operands at `bases`: whole vectors, then one masked vector.

        The body is emitted twice: masking every vector saves a fifth of the compile time, but where masked stores are
        microcoded (AVX2 of several AMD cores) relu then takes 0.50 ns an element instead of 0.13.
        """
        b = self.b
        loop, after = self.block("vectors"), self.block("rest")
        whole = b.sub(stop, I64(self.lanes - 1))
        before = b.block
        b.cbranch(b.icmp_signed("<", begin, whole), loop, after)
        b.position_at_end(loop)
        i = b.phi(I64)
        i.add_incoming(begin, before)
        self.vector(i, None, bases)
        following = b.add(i, I64(self.lanes))
        i.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, whole), loop, after)
        last = b.block
        b.position_at_end(after)
        rest = b.phi(I64)
        rest.add_incoming(begin, before)
        rest.add_incoming(following, last)
        if self.lanes == 1:
            return
        tail, done = self.block("tail"), self.block("done")
        b.cbranch(b.icmp_signed("<", rest, stop), tail, done)
        b.position_at_end(tail)
        self.vector(rest, self.math.lane_mask(b.sub(stop, rest)), bases)
        b.branch(done)
        b.position_at_end(done)

    def vector(self, i: Value, mask: Value, bases: dict[int, Value]) -> None:
        """Loads, computes and stores the elements from i on; every load stands before the first store."""
        known = dict(self.values)
        for k in self.operands:
            if k < self.inputs and self.classes[k] == "vector":
                known[k] = self.math.load(self.place(bases[k], i), mask)
            elif k < self.inputs and self.classes[k] == "strided":
                known[k] = self.math.gather(self.place(bases[k], self.b.mul(i, self.step[k])), self.step[k], mask)
            elif k < self.inputs and self.classes[k] == "gathered":
                table = self.b.inttoptr(self.step[k], POINTER)
                positions = self.b.gep(table, [i], source_etype=ir.IntType(32))
                known[k] = self.math.gather_at(bases[k], positions, mask)
        for k, result in enumerate(emit(self.roots, self.math, known), self.inputs):
            if self.classes[k] == "vector":
                self.math.store(result, self.place(bases[k], i), mask)
            else:
                self.math.scatter(result, self.place(bases[k], self.b.mul(i, self.step[k])), self.step[k], mask)
