"""The part of the executor's LLVM IR that differs between machines and systems.

pause()                                what a spin loop does
sleep_while(word, value), wake(word)   sleeps while the word holds the value, or returns for no reason; wakes all
default_arithmetic() -> mode           sets the floating-point unit to its default mode, gives the one before
restore_arithmetic(mode)
clock() -> ticks                       what timed runs note: of a rate that does not change, the same on all cores
"""

from __future__ import annotations

import sys

__all__ = ["clock_text", "machine_text"]

# The number of the futex system call on Linux.
_FUTEX = {"x86_64": 202, "amd64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}


def machine_text(system: str, machine: str) -> str:
    """IR that defines these functions, for `sys.platform` and a machine as `platform.machine()` names it."""
    machine = machine.lower()
    parts = (_pause_text(machine), _sleep_text(system, machine), _arithmetic_text(machine), clock_text(system, machine))
    return "\n".join(parts)


def clock_text(system: str, machine: str) -> str:
    """IR that defines clock()."""
    if machine.lower() in ("x86_64", "amd64"):  # the time stamp counter: 25 cycles, of one rate on all cores
        return """
declare i64 @llvm.readcyclecounter()
define internal i64 @clock() alwaysinline {
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}
"""
    # Elsewhere the cycle counter may be forbidden to programs (ARM). CLOCK_MONOTONIC has number 6 on macOS, 1 on Linux.
    number = 6 if system == "darwin" else 1
    return f"""
declare i32 @clock_gettime(i32, ptr)
define internal i64 @clock() noinline {{
  %place = alloca [2 x i64]
  %result = call i32 @clock_gettime(i32 {number}, ptr %place)
  %seconds = load i64, ptr %place
  %second = getelementptr i64, ptr %place, i64 1
  %rest = load i64, ptr %second
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %rest
  ret i64 %now
}}
"""


def _pause_text(machine: str) -> str:
    if machine in ("x86_64", "amd64"):
        declaration, call = "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
    elif machine in ("aarch64", "arm64"):
        declaration, call = "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
    else:
        declaration, call = "", ""
    return f"""{declaration}
define internal void @pause() alwaysinline {{
  {call}
  ret void
}}
"""


def _sleep_text(system: str, machine: str) -> str:
    if system == "linux" and machine in _FUTEX:
        # FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG look at the low half of the word, which changes every time
        call = f"call i64 (i64, ...) @syscall(i64 {_FUTEX[machine]}, ptr"
        low = "0" if sys.byteorder == "little" else "1"
        return f"""
declare i64 @syscall(i64, ...)
define internal void @sleep_while(ptr %word, i64 %value) noinline {{
  %half = getelementptr i32, ptr %word, i64 {low}
  %low = trunc i64 %value to i32
  %result = {call} %half, i32 128, i32 %low, ptr null, ptr null, i32 0)
  ret void
}}
define internal void @wake(ptr %word) noinline {{
  %half = getelementptr i32, ptr %word, i64 {low}
  %result = {call} %half, i32 129, i32 2147483647, ptr null, ptr null, i32 0)
  ret void
}}
"""
    return """
declare i32 @usleep(i32)
define internal void @sleep_while(ptr %word, i64 %value) noinline {
  %result = call i32 @usleep(i32 50)
  ret void
}
define internal void @wake(ptr %word) {
  ret void
}
"""


def _arithmetic_text(machine: str) -> str:
    if machine in ("x86_64", "amd64"):
        return """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal i64 @default_arithmetic() noinline {
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %mode = load i32, ptr %place
  store i32 8064, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  %result = zext i32 %mode to i64
  ret i64 %result
}
define internal void @restore_arithmetic(i64 %mode) noinline {
  %place = alloca i32
  %low = trunc i64 %mode to i32
  store i32 %low, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}
"""
    if machine in ("aarch64", "arm64"):
        return """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define internal i64 @default_arithmetic() noinline {
  %mode = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 0)
  ret i64 %mode
}
define internal void @restore_arithmetic(i64 %mode) noinline {
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret void
}
"""
    return """
define internal i64 @default_arithmetic() {
  ret i64 0
}
define internal void @restore_arithmetic(i64 %mode) {
  ret void
}
"""
