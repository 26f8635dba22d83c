"""IEEE arithmetic, comparisons and memory access on vectors of any lane count, emitted as LLVM IR.

Only correctly rounded IEEE operations and explicit fma, never a fast-math flag: every lane of every lane count rounds
alike. A masked last vector, a scalar loop and the full vector body therefore give the same bits.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.ir as ir

from tapeprop.targets.cpu.machine import vector_bits

__all__ = ["VectorArithmetic"]

Value = Any  # an llvmlite.ir value, of the builder's vector type unless a docstring says otherwise
Operand = Any  # a Value or a Python number, which is a constant in every lane

INDEX = ir.IntType(32)


class Splat(ir.Constant):
    """One constant in every lane, printed `splat (float 1.0)`: a sixteenth of the text LLVM would have to parse."""

    def __init__(self, kind: ir.VectorType, element: ir.Constant) -> None:
        self.type, self.constant = kind, element

    def get_reference(self) -> str:
        return f"splat ({self.constant.type} {self.constant.get_reference()})"


class VectorArithmetic:
    """Emits arithmetic on vectors of `lanes` floats of `bits` bits; plain scalars where `lanes` is 1.

    Operands may be Python numbers, which become constants of the working precision.
    """

    def __init__(self, builder: ir.IRBuilder, bits: int, lanes: int) -> None:
        if bits not in (32, 64):
            raise ValueError(f"vector arithmetic has 32 or 64 bits, not {bits}")
        if lanes < 1:
            raise ValueError(f"vector arithmetic needs at least one lane, got {lanes}")
        self.builder, self.bits, self.lanes = builder, bits, lanes
        self.fraction, self.bias = (23, 127) if bits == 32 else (52, 1023)
        self.float_scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.int_scalar = ir.IntType(bits)
        self.float, self.int = self.widen(self.float_scalar), self.widen(self.int_scalar)
        self.suffix = (f"v{lanes}" if lanes > 1 else "") + f"f{bits}"
        self._constants: dict[tuple[str, str], Value] = {}

    # ---- types and constants

    def widen(self, kind: ir.Type) -> ir.Type:
        """The type of one `kind` per lane."""
        return ir.VectorType(kind, self.lanes) if self.lanes > 1 else kind

    def constant(self, kind: ir.Type, value: float | int) -> Value:
        """The scalar constant `value` of type `kind` in every lane."""
        scalar = ir.Constant(kind, value)
        key = str(kind), scalar.get_reference()
        if key not in self._constants:
            self._constants[key] = Splat(self.widen(kind), scalar) if self.lanes > 1 else scalar
        return self._constants[key]

    def value(self, x: Operand) -> Value:
        """`x` as a vector: a Python number rounds to the working precision, beyond its range to an infinity."""
        if isinstance(x, (int, float)):
            # ctypes rounds an overflowing double to inf, where llvmlite's own struct.pack would raise.
            number = ctypes.c_float(x).value if self.bits == 32 else float(x)
            return self.constant(self.float_scalar, number)
        return x

    def integer(self, n: int) -> Value:
        """The integer `n` in every lane, as wide as a float lane."""
        return self.constant(self.int_scalar, n)

    def broadcast(self, scalar: Value) -> Value:
        """A scalar value in every lane."""
        if self.lanes == 1:
            return scalar
        kind = ir.VectorType(scalar.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INDEX(0))
        zeros = ir.Constant(ir.VectorType(INDEX, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, zeros)

    def from_double(self, scalar: Value) -> Value:
        """A scalar double, rounded to the working precision, in every lane."""
        return self.broadcast(self.builder.fptrunc(scalar, self.float_scalar) if self.bits == 32 else scalar)

    # ---- arithmetic

    def intrinsic(self, name: str, *args: Value) -> Value:
        """A call of the LLVM intrinsic llvm.<name> on operands and a result of the vector type."""
        module, name = self.builder.module, f"llvm.{name}.{self.suffix}"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(self.float, [a.type for a in args]), name)
        return self.builder.call(function, args)

    def add(self, a: Operand, b: Operand) -> Value:
        return self.builder.fadd(self.value(a), self.value(b))

    def sub(self, a: Operand, b: Operand) -> Value:
        return self.builder.fsub(self.value(a), self.value(b))

    def mul(self, a: Operand, b: Operand) -> Value:
        return self.builder.fmul(self.value(a), self.value(b))

    def div(self, a: Operand, b: Operand) -> Value:
        return self.builder.fdiv(self.value(a), self.value(b))

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("fma", self.value(a), self.value(b), self.value(c))

    def neg(self, a: Operand) -> Value:
        return self.builder.fneg(self.value(a))

    def abs(self, a: Operand) -> Value:
        return self.intrinsic("fabs", self.value(a))

    def sqrt(self, a: Operand) -> Value:
        return self.intrinsic("sqrt", self.value(a))

    def floor(self, a: Operand) -> Value:
        """The largest integer <= a; -0, infinities and NaN stay."""
        return self.intrinsic("floor", self.value(a))

    # ---- comparisons and choices

    def compare(self, relation: str, a: Operand, b: Operand) -> Value:
        """Lanes of i1: `relation` is <, <=, ==, !=, >=, >. False where an operand is NaN, except for '!='."""
        make = self.builder.fcmp_unordered if relation == "!=" else self.builder.fcmp_ordered
        return make(relation, self.value(a), self.value(b))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """a where the i1 lanes of `condition` are true, else b."""
        return self.builder.select(condition, self.value(a), self.value(b))

    def maximum(self, a: Operand, b: Operand) -> Value:
        """NaN where an operand is NaN; of equal operands the first: maximum(-0, 0) = -0. Cheap where b is a number."""
        return self._extremum("<", a, b)

    def minimum(self, a: Operand, b: Operand) -> Value:
        """NaN where an operand is NaN; of equal operands the first. Cheap where b is a number."""
        return self._extremum(">", a, b)

    def _extremum(self, relation: str, a: Operand, b: Operand) -> Value:
        result = self.select(self.compare(relation, a, b), b, a)  # a NaN in `a` compares false and stays
        if isinstance(b, (int, float)) and b == b:
            return result
        return self.select(self.compare("!=", b, b), b, result)

    def clamp(self, x: Operand, low: Operand, high: Operand) -> Value:
        """x within [low, high]; NaN stays NaN."""
        x = self.select(self.compare("<", x, low), low, x)
        return self.select(self.compare(">", x, high), high, x)

    # ---- bits

    def as_int(self, x: Value) -> Value:
        return self.builder.bitcast(x, self.int)

    def as_float(self, i: Value) -> Value:
        return self.builder.bitcast(i, self.float)

    def sign_bit(self, x: Value) -> Value:
        """The sign bits of `x` as integer lanes, every other bit zero."""
        return self.builder.and_(self.as_int(x), self.integer(-(1 << (self.bits - 1))))

    def with_sign(self, magnitude: Value, sign: Value) -> Value:
        """`magnitude` with the bits `sign` set: the sign, of zeros too, that a formula on |x| or x + 1 loses."""
        return self.as_float(self.builder.or_(self.as_int(magnitude), sign))

    def any_lane(self, condition: Value) -> Value:
        """One i1: whether a lane of `condition` is true."""
        if self.lanes == 1:
            return condition
        module, name = self.builder.module, f"llvm.vector.reduce.or.v{self.lanes}i1"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(ir.IntType(1), [condition.type]), name)
        return self.builder.call(function, [condition])

    # ---- memory

    def lane_mask(self, count: Value) -> Value:
        """Lanes of i1: lane number < count, for an i64 `count` of any size. None, meaning all, where lanes is 1."""
        if self.lanes == 1:
            return None
        b = self.builder
        most = count.type(self.lanes)
        count = b.trunc(b.select(b.icmp_signed("<", count, most), count, most), INDEX)
        numbers = ir.Constant(ir.VectorType(INDEX, self.lanes), list(range(self.lanes)))
        return b.icmp_signed("<", numbers, self.broadcast(count))

    def load(self, place: Value, mask: Value = None) -> Value:
        """`lanes` consecutive elements at the pointer `place`, which is aligned to an element.

        Lanes where `mask` is false give 0 and touch no memory.
        """
        align = self.bits // 8
        if mask is None:
            return self.builder.load(place, typ=self.float, align=align)
        # The four-operand form with an explicit alignment: LLVM >= 22 upgrades it, older LLVM knows no other.
        return self._memory_intrinsic("masked.load", self.float, "p0", place, INDEX(align), mask, self.value(0.0))

    def store(self, value: Value, place: Value, mask: Value = None) -> None:
        """The counterpart of `load`. The builder may stand in another block afterwards.

        Without mask registers a masked store takes ten times as long as a whole one (measured on Zen 3, which runs it as microcode),
        so a mask of ones is looked for.
        """
        b, align = self.builder, self.bits // 8
        if mask is None:
            b.store(value, place, align=align)
            return
        masked = (value, place, INDEX(align), mask)
        if vector_bits() >= 512:
            self._memory_intrinsic("masked.store", ir.VoidType(), "p0", *masked)
            return
        bits = ir.IntType(self.lanes)
        with b.if_else(b.icmp_unsigned("==", b.bitcast(mask, bits), bits(-1)), likely=True) as (whole, some):
            with whole:
                b.store(value, place, align=align)
            with some:
                self._memory_intrinsic("masked.store", ir.VoidType(), "p0", *masked)

    def gather(self, base: Value, stride: Value, mask: Value = None) -> Value:
        """base[0], base[stride], base[2 stride], ... (`stride`: i64, in elements); `mask` as in `load`."""
        if self.lanes == 1:
            return self.load(base)
        places, mask = self._places(base, stride), self._mask(mask)
        align, suffix = INDEX(self.bits // 8), f"v{self.lanes}p0"
        return self._memory_intrinsic("masked.gather", self.float, suffix, places, align, mask, self.value(0.0))

    def gather_at(self, base: Value, positions: Value, mask: Value = None) -> Value:
        """base[p] for `lanes` consecutive int32 positions p >= 0 at the pointer `positions`; `mask` as in `load`."""
        b, word = self.builder, ir.IntType(64)
        if self.lanes == 1:
            place = b.zext(b.load(positions, typ=INDEX, align=4), word)
            return self.load(b.gep(base, [place], source_etype=self.float_scalar))
        kind, mask = ir.VectorType(INDEX, self.lanes), self._mask(mask)
        name = f"llvm.masked.load.v{self.lanes}i32.p0"
        found = self._intrinsic(name, kind, positions, INDEX(4), mask, self.constant(INDEX, 0))
        bytes_apart = b.mul(b.zext(found, self.widen(word)), self.constant(word, self.bits // 8))
        places = b.add(self.broadcast(b.ptrtoint(base, word)), bytes_apart)
        pointers = b.inttoptr(places, ir.VectorType(ir.PointerType(), self.lanes))
        align, suffix = INDEX(self.bits // 8), f"v{self.lanes}p0"
        return self._memory_intrinsic("masked.gather", self.float, suffix, pointers, align, mask, self.value(0.0))

    def scatter(self, value: Value, base: Value, stride: Value, mask: Value = None) -> None:
        """The counterpart of `gather`."""
        if self.lanes == 1:
            self.store(value, base)
            return
        places, mask = self._places(base, stride), self._mask(mask)
        align, suffix = INDEX(self.bits // 8), f"v{self.lanes}p0"
        self._memory_intrinsic("masked.scatter", ir.VoidType(), suffix, value, places, align, mask)

    def _places(self, base: Value, stride: Value) -> Value:
        """A vector of `lanes` pointers, `stride` elements apart. (llvmlite's gep builds scalars only.)"""
        b = self.builder
        numbers = ir.Constant(ir.VectorType(stride.type, self.lanes), list(range(self.lanes)))
        steps = b.mul(numbers, self.broadcast(stride))
        bytes_apart = b.mul(steps, self.constant(stride.type, self.bits // 8))
        start = self.broadcast(b.ptrtoint(base, stride.type))
        return b.inttoptr(b.add(start, bytes_apart), ir.VectorType(ir.PointerType(), self.lanes))

    def _mask(self, mask: Value) -> Value:
        return self.constant(ir.IntType(1), 1) if mask is None else mask

    def _memory_intrinsic(self, name: str, result: ir.Type, suffix: str, *args: Value) -> Value:
        return self._intrinsic(f"llvm.{name}.{self.suffix}.{suffix}", result, *args)

    def _intrinsic(self, name: str, result: ir.Type, *args: Value) -> Value:
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
        return self.builder.call(function, args)
