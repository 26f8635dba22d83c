"""The loops that run a tape, as LLVM IR: 20 ms to compile, kept in the kernel cache, no numba.

Entry points (all operands are int64, pointers as addresses):

    run_alone(record) -> status             one worker, on the caller's thread
    run_together(record, team, workers)     the caller is worker 0; workers 1.. are threads inside serve()
        -> status
    serve(team, index, seen)                a team thread: waits for runs, takes part, returns when dismissed
    dismiss(team, workers)                  ends serve() of workers 1.. of a team that runs nothing

Record (int64 words): what to run; see `RECORD`. Control block: see `CONTROL`. Team block: one 64-byte line per worker,
see `TEAM` (line 0) and `MAILBOX` (line i of worker i).

Barriers. Arrivals are counted; the last worker to arrive publishes the next phase. It also reads the status word, and
says in the phase's lowest bit whether to stop: if each worker read the status for itself, one could see 0 and go on
while another, in the next stretch, fails and leaves a third waiting. So all leave at the same barrier. The last row of
a round, and of a step, always ends in a barrier. With one worker the status is looked at after every row.

Waiting. A bounded number of pauses, then of yields to the scheduler, then sleep on a futex (elsewhere than on Linux:
naps of 50 us). Who sleeps says so in a word next to the one it waits for, sequentially consistent on both sides, so no
wake-up is lost; an interrupted sleep (EINTR) only looks again.

Arithmetic. The mode of the floating-point unit is set to the default (round to nearest, subnormals kept) and put back
afterwards: a library that flushes subnormals on the calling thread would else give worker 0 other bits than the rest.
"""

from __future__ import annotations

import platform
import sys

from tapeprop.runtime.native_machine import machine_text

__all__ = ["CONTROL", "ENTRIES", "MAILBOX", "RECORD", "RECORD_WORDS", "TEAM", "loop_text"]

ENTRIES = ("run_alone", "run_together", "serve", "dismiss")

#: Words of a record: address of the first row, number of rows, bytes per row, address of the control block, steps,
#: pauses before a waiting worker yields, address of the time buffer (0: none; else int64 (steps, workers, slots, 2)), the
#: number of rows at the front that each step runs `rounds` times before it goes on to the rest, and the slots of a step:
#: one for each row each time that it runs.
RECORD = {
    "tape": 0, "rows": 1, "width": 2, "control": 3, "steps": 4, "spins": 5, "times": 6, "front": 7, "rounds": 8, "slots": 9,
}  # fmt: skip
RECORD_WORDS = 16
#: Words of a control block, each group on a cache line of its own. phase: 2 * barriers passed + whether to stop.
CONTROL = {"status": 0, "arrivals": 8, "phase": 16, "sleepers": 17, "step": 32}
TEAM = {"done": 0, "sleepers": 1}
MAILBOX = {"generation": 0, "sleepers": 1, "record": 2, "workers": 3}

_YIELDS = 200


def loop_text(system: str = sys.platform, machine: str = platform.machine()) -> str:
    """The IR for a machine as `platform.machine()` names it."""
    parts = [machine_text(system, machine), _WAIT, _BARRIER]
    parts += [_walk_text(together, timed) for together in (False, True) for timed in (False, True)]
    return "\n".join([*parts, _ENTRIES])


def _place(name: str, base: str, word: int) -> str:
    return f"  %{name} = getelementptr i64, ptr {base}, i64 {word}\n"


# ---- waiting

_WAIT = f"""
declare i32 @sched_yield()

; waits until the word differs from %old; gives what it holds then
define internal i64 @await_change(ptr %word, i64 %old, ptr %sleepers, i64 %spins) noinline {{
entry:
  %patience = add i64 %spins, {_YIELDS}
  br label %look
look:
  %n = phi i64 [0, %entry], [%n.next, %pausing], [%n.next, %yielding], [%n.next, %sleeping]
  %now = load atomic i64, ptr %word acquire, align 8
  %changed = icmp ne i64 %now, %old
  br i1 %changed, label %done, label %wait
wait:
  %n.next = add i64 %n, 1
  %hot = icmp sle i64 %n.next, %spins
  br i1 %hot, label %pausing, label %cooler
pausing:
  call void @pause()
  br label %look
cooler:
  %warm = icmp sle i64 %n.next, %patience
  br i1 %warm, label %yielding, label %sleeping
yielding:
  %yielded = call i32 @sched_yield()
  br label %look
sleeping:
  %before = atomicrmw add ptr %sleepers, i64 1 seq_cst
  call void @sleep_while(ptr %word, i64 %old)
  %after = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %look
done:
  ret i64 %now
}}

; writes the word and wakes whoever sleeps on it
define internal void @announce(ptr %word, i64 %value, ptr %sleepers) {{
  store atomic i64 %value, ptr %word seq_cst, align 8
  %sleeping = load atomic i64, ptr %sleepers seq_cst, align 8
  %some = icmp ne i64 %sleeping, 0
  br i1 %some, label %wake, label %done
wake:
  call void @wake(ptr %word)
  br label %done
done:
  ret void
}}
"""

_BARRIER = (
    """
; gives the new phase; whoever arrives last advances the step where one ends here
define internal i64 @barrier(ptr %control, i64 %phase, i64 %workers, i64 %spins, i1 %step.ends) noinline {
"""
    + _place("arrivals", "%control", CONTROL["arrivals"])
    + _place("phase.word", "%control", CONTROL["phase"])
    + _place("sleepers", "%control", CONTROL["sleepers"])
    + _place("step.word", "%control", CONTROL["step"])
    + """
  %before = atomicrmw add ptr %arrivals, i64 1 seq_cst
  %arrived = add i64 %before, 1
  %last = icmp eq i64 %arrived, %workers
  br i1 %last, label %release, label %wait
release:
  store atomic i64 0, ptr %arrivals monotonic, align 8
  %status = load atomic i64, ptr %control monotonic, align 8
  %stops = icmp ne i64 %status, 0
  %goes.on = xor i1 %stops, true
  %advances = and i1 %step.ends, %goes.on
  %advance = zext i1 %advances to i64
  %step = load i64, ptr %step.word
  %step.next = add i64 %step, %advance
  store i64 %step.next, ptr %step.word
  %stop = zext i1 %stops to i64
  %base = add i64 %phase, 2
  %next = or i64 %base, %stop
  call void @announce(ptr %phase.word, i64 %next, ptr %sleepers)
  ret i64 %next
wait:
  %new = call i64 @await_change(ptr %phase.word, i64 %phase, ptr %sleepers, i64 %spins)
  ret i64 %new
}
"""
)


# ---- walking the tape


def _walk_text(together: bool, timed: bool) -> str:
    """walk_alone, walk_together and their timed twins; the untimed ones read no clock."""
    name = f"walk_{'together' if together else 'alone'}{'_timed' if timed else ''}"
    fields = "".join(
        _place(f"{field}.place", "%record", word) + f"  %{field} = load i64, ptr %{field}.place\n"
        for field, word in RECORD.items()
    )
    before = "  %start = call i64 @clock()\n" if timed else ""
    after = slot = slot_step = slot_round = ""
    if timed:
        slot_step = """
  %block = mul i64 %step, %workers
  %mine = add i64 %block, %worker
  %pairs = mul i64 %mine, %slots
  %bytes = mul i64 %pairs, 16
  %slot.step = add i64 %times, %bytes
"""
        slot_round = "  %slot.first = phi i64 [%slot.step, %step.begins], [%slot.next, %round.over]\n"
        slot = "  %slot = phi i64 [%slot.first, %round.begins], [%slot.next, %following]\n"
        after = """
  %stop.time = call i64 @clock()
  %slot.start = inttoptr i64 %slot to ptr
  %slot.stop = getelementptr i64, ptr %slot.start, i64 1
  store i64 %start, ptr %slot.start
  store i64 %stop.time, ptr %slot.stop
  %slot.next = add i64 %slot, 16
"""
    if together:
        check = """
  %barrier.place = getelementptr i64, ptr %row.words, i64 1
  %barrier.word = load i64, ptr %barrier.place
  %marked = icmp ne i64 %barrier.word, 0
  %waits = or i1 %marked, %ends
  br i1 %waits, label %at.barrier, label %following
at.barrier:
  %phase.new = call i64 @barrier(ptr %control.block, i64 %phase, i64 %workers, i64 %spins, i1 %step.ends)
  %stop.bit = trunc i64 %phase.new to i1
  br i1 %stop.bit, label %done, label %following
following:
  %phase.next = phi i64 [%phase, %row.begins], [%phase.new, %at.barrier]
"""
        advance = ""
    else:
        check = """
  %status = load atomic i64, ptr %control.block monotonic, align 8
  %failed = icmp ne i64 %status, 0
  br i1 %failed, label %done, label %following
following:
  %phase.next = add i64 %phase, 0
"""
        advance = _place("step.word", "%control.block", CONTROL["step"]) + "  store i64 %step.next, ptr %step.word\n"
    return f"""
define internal void @{name}(ptr %record, i64 %worker, i64 %workers) noinline {{
entry:
{fields}
  %control.block = inttoptr i64 %control to ptr
  %extent = mul i64 %rows, %width
  %end = add i64 %tape, %extent
  %front.bytes = mul i64 %front, %width
  %front.end = add i64 %tape, %front.bytes
  %rest = icmp slt i64 %front, %rows
  %rest.round = zext i1 %rest to i64
  %rounds.all = add i64 %rounds, %rest.round
  %some.rows = icmp sgt i64 %rows, 0
  %some.steps = icmp sgt i64 %steps, 0
  %some = and i1 %some.rows, %some.steps
  br i1 %some, label %step.begins, label %done
step.begins:
  %step = phi i64 [0, %entry], [%step.next, %step.over]
  %phase.step = phi i64 [0, %entry], [%phase.next, %step.over]
{slot_step}
  br label %round.begins
round.begins:
  %round = phi i64 [0, %step.begins], [%round.next, %round.over]
  %phase.round = phi i64 [%phase.step, %step.begins], [%phase.next, %round.over]
{slot_round}  %round.next = add i64 %round, 1
  %at.front = icmp slt i64 %round, %rounds
  %row.first = select i1 %at.front, i64 %tape, i64 %front.end
  %row.end = select i1 %at.front, i64 %front.end, i64 %end
  %last = sub i64 %row.end, %width
  %last.round = icmp eq i64 %round.next, %rounds.all
  br label %row.begins
row.begins:
  %row = phi i64 [%row.first, %round.begins], [%row.next, %following]
  %phase = phi i64 [%phase.round, %round.begins], [%phase.next, %following]
{slot}
  %row.words = inttoptr i64 %row to ptr
  %kernel = load ptr, ptr %row.words
{before}
  call void %kernel(i64 %row, i64 %worker, i64 %workers)
{after}
  %ends = icmp eq i64 %row, %last
  %step.ends = and i1 %ends, %last.round
{check}
  %row.next = add i64 %row, %width
  br i1 %ends, label %round.over, label %row.begins
round.over:
  br i1 %last.round, label %step.over, label %round.begins
step.over:
  %step.next = add i64 %step, 1
{advance}
  %more = icmp slt i64 %step.next, %steps
  br i1 %more, label %step.begins, label %done
done:
  ret void
}}
"""


# ---- entry points

_ENTRIES = (
    """
; clears what a run leaves in the control block
define internal void @reset(ptr %control) {
"""
    + "".join(
        _place(name, "%control", word) + f"  store atomic i64 0, ptr %{name} monotonic, align 8\n"
        for name, word in CONTROL.items()
    )
    + """
  ret void
}

define internal i1 @is_timed(ptr %record) {
"""
    + _place("place", "%record", RECORD["times"])
    + """
  %times = load i64, ptr %place
  %timed = icmp ne i64 %times, 0
  ret i1 %timed
}

define internal ptr @control_of(ptr %record) {
"""
    + _place("place", "%record", RECORD["control"])
    + """
  %control = load ptr, ptr %place
  ret ptr %control
}

define internal i64 @spins_of(ptr %record) {
"""
    + _place("place", "%record", RECORD["spins"])
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
    + _place("record.word", "%mailbox", MAILBOX["record"])
    + _place("workers.word", "%mailbox", MAILBOX["workers"])
    + _place("sleeper", "%mailbox", MAILBOX["sleepers"])
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
    + _place("done.word", "%team", TEAM["done"])
    + _place("sleepers", "%team", TEAM["sleepers"])
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
    + _place("sleeper", "%mailbox", MAILBOX["sleepers"])
    + _place("record.word", "%mailbox", MAILBOX["record"])
    + _place("workers.word", "%mailbox", MAILBOX["workers"])
    + _place("done.word", "%team", TEAM["done"])
    + _place("launcher", "%team", TEAM["sleepers"])
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
