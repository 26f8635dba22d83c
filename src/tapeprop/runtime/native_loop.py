"""The loops that run a tape, as LLVM IR: 20 ms to compile, kept in the kernel cache, no numba.

Entry points (all operands are int64, pointers as addresses):

    run_alone(record) -> status             one worker, on the caller's thread
    run_together(record, team, workers)     the caller is worker 0; workers 1.. are threads inside serve()
        -> status
    serve(team, index, seen)                a team thread: waits for runs, takes part, returns when dismissed
    dismiss(team, workers)                  ends serve() of workers 1.. of a team that runs nothing

Record (int64 words): what to run; see `RECORD` in `native_layout`. Control block: see `CONTROL`. Team block: one 64-byte line
per worker, see `TEAM` (line 0) and `MAILBOX` (line i of worker i). How a worker walks, waits and meets the others: `native_walk`.

Arithmetic. The mode of the floating-point unit is set to the default (round to nearest, subnormals kept) and put back
afterwards: a library that flushes subnormals on the calling thread would else give worker 0 other bits than the rest.
"""

from __future__ import annotations

import platform
import sys

from tapeprop.runtime.native_layout import CONTROL, MAILBOX, RECORD, TEAM, place
from tapeprop.runtime.native_machine import machine_text
from tapeprop.runtime.native_walk import walking_text

__all__ = ["ENTRIES", "loop_text"]

ENTRIES = ("run_alone", "run_together", "serve", "dismiss")


def loop_text(system: str = sys.platform, machine: str = platform.machine()) -> str:
    """The IR for a machine as `platform.machine()` names it."""
    return "\n".join([machine_text(system, machine), walking_text(), _ENTRIES])


_ENTRIES = (
    """
; clears what a run leaves in the control block
define internal void @reset(ptr %control) {
"""
    + "".join(
        place(name, "%control", word) + f"  store atomic i64 0, ptr %{name} monotonic, align 8\n"
        for name, word in CONTROL.items()
    )
    + """
  ret void
}

define internal i1 @is_timed(ptr %record) {
"""
    + place("place", "%record", RECORD["times"])
    + """
  %times = load i64, ptr %place
  %timed = icmp ne i64 %times, 0
  ret i1 %timed
}

define internal ptr @control_of(ptr %record) {
"""
    + place("place", "%record", RECORD["control"])
    + """
  %control = load ptr, ptr %place
  ret ptr %control
}

define internal i64 @spins_of(ptr %record) {
"""
    + place("place", "%record", RECORD["spins"])
    + """
  %spins = load i64, ptr %place
  ret i64 %spins
}

define internal void @take_part(ptr %record, i64 %worker, i64 %workers) {
  %timed = call i1 @is_timed(ptr %record)
  br i1 %timed, label %with.clock, label %without
with.clock:
  call void @walk_together_timed(ptr %record, i64 %worker, i64 %workers)
  ret void
without:
  call void @walk_together(ptr %record, i64 %worker, i64 %workers)
  ret void
}

define internal void @call_worker(ptr %team, i64 %index, i64 %address, i64 %workers) {
  %offset = mul i64 %index, 64
  %mailbox = getelementptr i8, ptr %team, i64 %offset
"""
    + place("record.word", "%mailbox", MAILBOX["record"])
    + place("workers.word", "%mailbox", MAILBOX["workers"])
    + place("sleeper", "%mailbox", MAILBOX["sleepers"])
    + """
  store i64 %address, ptr %record.word
  store i64 %workers, ptr %workers.word
  %generation = load atomic i64, ptr %mailbox monotonic, align 8
  %generation.next = add i64 %generation, 1
  call void @announce(ptr %mailbox, i64 %generation.next, ptr %sleeper)
  ret void
}

define i64 @run_alone(i64 %address) {
  %record = inttoptr i64 %address to ptr
  %control = call ptr @control_of(ptr %record)
  call void @reset(ptr %control)
  %mode = call i64 @default_arithmetic()
  %timed = call i1 @is_timed(ptr %record)
  br i1 %timed, label %with.clock, label %without
with.clock:
  call void @walk_alone_timed(ptr %record, i64 0, i64 1)
  br label %done
without:
  call void @walk_alone(ptr %record, i64 0, i64 1)
  br label %done
done:
  call void @restore_arithmetic(i64 %mode)
  %status = load atomic i64, ptr %control monotonic, align 8
  ret i64 %status
}

define i64 @run_together(i64 %address, i64 %team.address, i64 %workers) {
entry:
  %record = inttoptr i64 %address to ptr
  %team = inttoptr i64 %team.address to ptr
  %control = call ptr @control_of(ptr %record)
  call void @reset(ptr %control)
  %spins = call i64 @spins_of(ptr %record)
"""
    + place("done.word", "%team", TEAM["done"])
    + place("sleepers", "%team", TEAM["sleepers"])
    + """
  store atomic i64 0, ptr %done.word monotonic, align 8
  %others = sub i64 %workers, 1
  %some = icmp sgt i64 %others, 0
  br i1 %some, label %call, label %walk
call:
  %i = phi i64 [1, %entry], [%i.next, %call]
  call void @call_worker(ptr %team, i64 %i, i64 %address, i64 %workers)
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %workers
  br i1 %more, label %call, label %walk
walk:
  %mode = call i64 @default_arithmetic()
  call void @take_part(ptr %record, i64 0, i64 %workers)
  call void @restore_arithmetic(i64 %mode)
  %first = load atomic i64, ptr %done.word acquire, align 8
  br label %join
join:
  %finished = phi i64 [%first, %walk], [%now, %await]
  %all = icmp sge i64 %finished, %others
  br i1 %all, label %over, label %await
await:
  %now = call i64 @await_change(ptr %done.word, i64 %finished, ptr %sleepers, i64 %spins)
  br label %join
over:
  %status = load atomic i64, ptr %control monotonic, align 8
  ret i64 %status
}

define void @dismiss(i64 %team.address, i64 %workers) {
entry:
  %team = inttoptr i64 %team.address to ptr
  br label %check
check:
  %i = phi i64 [1, %entry], [%i.next, %call]
  %more = icmp slt i64 %i, %workers
  br i1 %more, label %call, label %done
call:
  call void @call_worker(ptr %team, i64 %i, i64 0, i64 %workers)
  %i.next = add i64 %i, 1
  br label %check
done:
  ret void
}

define void @serve(i64 %team.address, i64 %index, i64 %seen.first) {
entry:
  %team = inttoptr i64 %team.address to ptr
  %offset = mul i64 %index, 64
  %mailbox = getelementptr i8, ptr %team, i64 %offset
"""
    + place("sleeper", "%mailbox", MAILBOX["sleepers"])
    + place("record.word", "%mailbox", MAILBOX["record"])
    + place("workers.word", "%mailbox", MAILBOX["workers"])
    + place("done.word", "%team", TEAM["done"])
    + place("launcher", "%team", TEAM["sleepers"])
    + """
  %mode = call i64 @default_arithmetic()
  br label %idle
idle:
  %seen = phi i64 [%seen.first, %entry], [%generation, %reported]
  %spins = phi i64 [0, %entry], [%spins.next, %reported]
  %generation = call i64 @await_change(ptr %mailbox, i64 %seen, ptr %sleeper, i64 %spins)
  %record = load ptr, ptr %record.word
  %over = icmp eq ptr %record, null
  br i1 %over, label %end, label %work
work:
  %workers = load i64, ptr %workers.word
  %spins.next = call i64 @spins_of(ptr %record)
  call void @take_part(ptr %record, i64 %index, i64 %workers)
  %before = atomicrmw add ptr %done.word, i64 1 seq_cst
  %sleeping = load atomic i64, ptr %launcher seq_cst, align 8
  %some = icmp ne i64 %sleeping, 0
  br i1 %some, label %wake, label %reported
wake:
  call void @wake(ptr %done.word)
  br label %reported
reported:
  br label %idle
end:
  call void @restore_arithmetic(i64 %mode)
  ret void
}
"""
)
