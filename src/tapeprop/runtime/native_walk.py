"""How a worker walks the rows of a tape, waits and passes barriers, as LLVM IR: the inner part of `native_loop`.

Barriers. Arrivals are counted; the last worker to arrive publishes the next phase. It also reads the status word, and
says in the phase's lowest bit whether to stop: if each worker read the status for itself, one could see 0 and go on
while another, in the next stretch, fails and leaves a third waiting. So all leave at the same barrier. The last row of
a round, and of a step, always ends in a barrier. With one worker the status is looked at after every row.

Waiting. A bounded number of pauses, then of yields to the scheduler, then sleep on a futex (elsewhere than on Linux:
naps of 50 us). Who sleeps says so in a word next to the one it waits for, sequentially consistent on both sides, so no
wake-up is lost; an interrupted sleep (EINTR) only looks again.
"""

from __future__ import annotations

from tapeprop.runtime.native_layout import CONTROL, RECORD, place

__all__ = ["walking_text"]

_YIELDS = 200


def walking_text() -> str:
    """The IR of waiting, barriers and the walks; needs that of the machine."""
    walks = [_walk_text(together, timed) for together in (False, True) for timed in (False, True)]
    return "\n".join([_WAIT, _BARRIER, *walks])


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
    + place("arrivals", "%control", CONTROL["arrivals"])
    + place("phase.word", "%control", CONTROL["phase"])
    + place("sleepers", "%control", CONTROL["sleepers"])
    + place("step.word", "%control", CONTROL["step"])
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
        place(f"{field}.place", "%record", word) + f"  %{field} = load i64, ptr %{field}.place\n"
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
        advance = place("step.word", "%control.block", CONTROL["step"]) + "  store i64 %step.next, ptr %step.word\n"
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
