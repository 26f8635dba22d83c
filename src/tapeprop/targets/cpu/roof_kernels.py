"""Two kernels that do nothing but one thing, as LLVM IR: what they reach is what the machine can do.

fma_float32, fma_float64    fused multiply-adds in registers. Fields of a row: 0 rounds, 1 address of a line per worker
stream                      y += x over two arrays of each worker. Fields: 0 address of the first worker's y, 1 bytes from
                            one worker's to the next one's, 2 bytes from y to x, 3 bytes of each array, a multiple of
                            `STREAM_BLOCK`, 4 rounds

Both take (row, worker, workers) as every kernel does.
"""

from __future__ import annotations

from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.targets.cpu.machine import lanes, vector_bits, vector_registers

__all__ = ["ROOF_KERNELS", "STREAM_BLOCK", "fma_operations", "roof_text"]

ROOF_KERNELS = ("fma_float32", "fma_float64", "stream")
#: Bytes of an array that one turn of the loop of `stream` takes.
STREAM_BLOCK = 256


def _chains() -> int:
    """Sums that do not wait for each other: more than latency times units of any machine, fewer than it has registers."""
    return 24 if vector_registers() >= 32 else 12


def fma_operations(dtype: str) -> int:
    """Floating-point operations in one round of one worker: a multiplication and an addition in each lane of each sum."""
    return 2 * lanes(dtype) * _chains()


def roof_text() -> str:
    """The IR of all of `ROOF_KERNELS` for this machine's vectors."""
    return "\n".join([_fma_text("float32", "float"), _fma_text("float64", "double"), _stream_text()])


def _field(name: str, number: int) -> str:
    return (
        f"  %{name}.place = getelementptr i64, ptr %words, i64 {FIRST_FIELD + number}\n"
        f"  %{name} = load i64, ptr %{name}.place\n"
    )


def _fma_text(dtype: str, scalar: str) -> str:
    width, chains = lanes(dtype), _chains()
    kind = f"<{width} x {scalar}>"

    def constant(value: float) -> str:
        return f"<{', '.join([f'{scalar} {value:e}'] * width)}>"

    # Each sum begins elsewhere, or the optimiser would see that they are one. They stay near 1/3: x/4 + 1/4.
    sums = "".join(f"  %s{i} = phi {kind} [{constant(1.0 + i)}, %entry], [%n{i}, %loop]\n" for i in range(chains))
    factor = constant(0.25)
    # A machine without fused multiply-add does the two one after another, in the kernels of tapes too.
    steps = "".join(
        f"  %p{i} = fmul contract {kind} %s{i}, {factor}\n  %n{i} = fadd contract {kind} %p{i}, {factor}\n"
        for i in range(chains)
    )
    total = "".join(f"  %t{i} = fadd {kind} %{'n0' if i == 1 else f't{i - 1}'}, %n{i}\n" for i in range(1, chains))
    return f"""
define void @fma_{dtype}(i64 %row, i64 %worker, i64 %workers) {{
entry:
  %words = inttoptr i64 %row to ptr
{_field("rounds", 0)}{_field("results", 1)}
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i.next, %loop]
{sums}{steps}
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %rounds
  br i1 %more, label %loop, label %end
end:
{total}
  %offset = mul i64 %worker, 64
  %line = add i64 %results, %offset
  %place = inttoptr i64 %line to ptr
  store {kind} %t{chains - 1}, ptr %place, align 8
  ret void
}}
"""


def _stream_text() -> str:
    width, size = lanes("float32"), vector_bits() // 8
    kind = f"<{width} x float>"
    body = "".join(
        f"""
  %yp{i} = getelementptr i8, ptr %y, i64 {i * size}
  %xp{i} = getelementptr i8, ptr %x, i64 {i * size}
  %yv{i} = load {kind}, ptr %yp{i}, align {size}
  %xv{i} = load {kind}, ptr %xp{i}, align {size}
  %sum{i} = fadd {kind} %yv{i}, %xv{i}
  store {kind} %sum{i}, ptr %yp{i}, align {size}
"""
        for i in range(STREAM_BLOCK // size)
    )
    return f"""
define void @stream(i64 %row, i64 %worker, i64 %workers) {{
entry:
  %words = inttoptr i64 %row to ptr
{_field("first", 0)}{_field("apart", 1)}{_field("between", 2)}{_field("bytes", 3)}{_field("rounds", 4)}
  %offset = mul i64 %worker, %apart
  %y.address = add i64 %first, %offset
  %y.base = inttoptr i64 %y.address to ptr
  %x.base = getelementptr i8, ptr %y.base, i64 %between
  br label %round
round:
  %r = phi i64 [0, %entry], [%r.next, %round.over]
  br label %loop
loop:
  %i = phi i64 [0, %round], [%i.next, %loop]
  %y = getelementptr i8, ptr %y.base, i64 %i
  %x = getelementptr i8, ptr %x.base, i64 %i
{body}
  %i.next = add i64 %i, {STREAM_BLOCK}
  %more = icmp slt i64 %i.next, %bytes
  br i1 %more, label %loop, label %round.over
round.over:
  %r.next = add i64 %r, 1
  %again = icmp slt i64 %r.next, %rounds
  br i1 %again, label %round, label %end
end:
  ret void
}}
"""
