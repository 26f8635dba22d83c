"""The machine for PTX: who waits for whom, and each fault that has to be seen."""

import numpy as np
import pytest
from ptx.machine import Machine
from ptx.memory import Arena, Fault
from ptx.program import Unknown, read
from ptx.programs_for_tests import PAIR, START, run
from ptx.traffic import Traffic
from ptx.translate import Code

# ---- who waits for whom


SHUFFLES = {
    "bfly": (3, 31, lambda lane: lane ^ 3),
    "up": (2, 0, lambda lane: np.where(lane < 2, lane, lane - 2)),
    "down": (2, 31, lambda lane: np.where(lane > 29, lane, lane + 2)),
    "idx": (7, 31, lambda lane: lane * 0 + 7),
}


@pytest.mark.parametrize("way", SHUFFLES)
def test_shuffles(arena, way):
    distance, clamp, source = SHUFFLES[way]
    (found,) = run(
        arena,
        f"""
        shfl.sync.{way}.b32 %r2|%p0, %r1, {distance}, {clamp}, -1;
        selp.u32 %r3, 1, 0, %p0;
        mov.b64 %rd5, {{%r2, %r3}};
        st.global.u64 [%rd3], %rd5;
        """,
        np.zeros(128, np.uint64),
        threads=64,
        blocks=2,
    )
    thread = np.arange(128)
    lane = thread % 32
    np.testing.assert_array_equal(found.view(np.uint32)[::2], thread - lane + source(lane))
    moved = (lane >= 2) if way == "up" else (lane <= 29) if way == "down" else np.ones(128, np.bool_)
    np.testing.assert_array_equal(found.view(np.uint32)[1::2], moved)


def test_shuffles_in_parts_of_a_warp(arena):
    """Segments of 8 lanes (c = 0x181f), bits of floats, and warps of which some lanes are not there."""
    body = """
    cvt.rn.f32.s32 %f0, %r1;
    shfl.sync.down.b32 %f1, %f0, 3, 0x181f, -1;
    cvt.rzi.s64.f32 %rd5, %f1;
    st.global.u64 [%rd3], %rd5;
    """
    (found,) = run(arena, body, np.zeros(64, np.int64), threads=64)
    lane = np.arange(64)
    np.testing.assert_array_equal(found, np.where(lane % 8 + 3 < 8, lane + 3, lane))
    with pytest.raises(Fault, match="a lane that the warp does not have"):
        run(arena, "shfl.sync.bfly.b32 %r2, %r0, 16, 31, -1;", np.zeros(40, np.int64), threads=40)


def test_threads_of_three_axes(arena):
    text = (
        f".version 9.0\n.visible .entry k({PAIR})\n{{{START}"
        + """
    mov.u32 %r2, %tid.y;
    mov.u32 %r3, %tid.z;
    mov.u32 %r4, %ctaid.y;
    mad.lo.s32 %r5, %r3, 3, %r2;
    mad.lo.s32 %r5, %r5, 4, %r0;
    mad.lo.s32 %r5, %r4, 24, %r5;
    mul.wide.u32 %rd5, %r5, 8;
    add.s64 %rd5, %rd0, %rd5;
    cvt.u64.u32 %rd6, %r3;
    st.global.u64 [%rd5], %rd6;
    ret;
    }"""
    )
    place = arena.allocate(48 * 8)
    Machine(arena).run(Code(read(text)), (1, 2, 1), (4, 3, 2), (place, 0))
    offset = place - arena.address
    found = arena.bytes[offset : offset + 48 * 8].view(np.int64)
    np.testing.assert_array_equal(found, np.tile(np.repeat([0, 1], 12), 2))
    arena.release(place)


REVERSED = """
    .shared .align 8 .b8 row[{bytes}];
    cvt.u64.u32 %rd5, %r1;
    mul.wide.u32 %rd6, %r0, 8;
    mov.u64 %rd7, row;
    add.s64 %rd8, %rd7, %rd6;
    st.shared.u64 [%rd8], %rd5;
    {barrier}
    sub.s64 %rd9, %rd7, %rd6;
    ld.shared.u64 %rd10, [%rd9+{last}];
    st.global.u64 [%rd3], %rd10;
"""


def test_a_barrier_orders_shared_memory(arena):
    (found,) = run(
        arena,
        REVERSED.format(barrier="bar.sync 0;", bytes=512, last=504),
        np.zeros(192, np.int64),
        threads=64,
        blocks=3,
    )
    np.testing.assert_array_equal(found.reshape(3, 64), np.arange(192).reshape(3, 64)[:, ::-1])


def test_a_barrier_that_asks_all(arena):
    (found,) = run(
        arena,
        """
        setp.eq.s32 %p0, %r1, 70;
        bar.red.or.pred %p1, 0, %p0;
        selp.u64 %rd5, 1, 0, %p1;
        st.global.u64 [%rd3], %rd5;
        """,
        np.zeros(192, np.int64),
        threads=64,
        blocks=3,
    )
    np.testing.assert_array_equal(found, np.arange(192) // 64 == 1)


# ---- what must not be


READ_BY_ALL = """
    ld.global.u64 %rd5, [%rd0];
    {barrier}
    setp.ne.s32 %p0, %r1, {writer};
    @%p0 bra $end;
    st.global.u64 [%rd0], %rd5;
    $end:
"""


@pytest.mark.parametrize(("barrier", "writer", "blocks", "races"), [
    ("", 0, 1, True), ("", 31, 1, True), ("bar.sync 0;", 0, 1, False), ("bar.sync 0;", 31, 1, False),
    ("bar.sync 0;", 40, 2, True), ("bar.sync 0;", 0, 2, True), ("", 40, 2, True),
])  # fmt: skip
def test_who_reads_last_hides_nobody(arena, barrier, writer, blocks, races):
    body = READ_BY_ALL.format(barrier=barrier, writer=writer)
    if not races:
        run(arena, body, np.zeros(64, np.int64), blocks=blocks)
        return
    with pytest.raises(Fault, match="in no order"):
        run(arena, body, np.zeros(64, np.int64), blocks=blocks)


PARTS = """
    .shared .align 8 .b8 row[8];
    setp.ne.s32 %p0, %r0, 0;
    @%p0 bra $after;
    st.shared.{written} [row{behind}], 0;
    $after:
    bar.sync 0;
    ld.shared.{read} {to}, [row{at}];
"""


@pytest.mark.parametrize(("written", "behind", "read", "to", "at", "told"), [
    ("u64", "", "u32", "%r2", "+4", None), ("u64", "", "u32", "%r2", "", None), ("u32", "", "u64", "%rd5", "", "nobody"),
    ("u32", "", "u32", "%r2", "+4", "nobody"), ("u8", "+3", "u8", "%h0", "+3", None), ("u8", "+3", "u8", "%h0", "+2", "nobody"),
])  # fmt: skip
def test_parts_of_what_was_written(arena, written, behind, read, to, at, told):
    body = PARTS.format(written=written, behind=behind, read=read, to=to, at=at)
    if told is None:
        run(arena, body)
        return
    with pytest.raises(Fault, match=told):
        run(arena, body)


FAULTS = {
    "past an array": ("ld.global.u64 %rd5, [%rd3+8];", "is in no live memory"),
    "between two elements": ("ld.global.u64 %rd5, [%rd0+4];", "on no boundary of 8"),
    "two elements at once, off their boundary": ("ld.global.v2.u64 {%rd5, %rd6}, [%rd0+8];", "on no boundary of 16"),
    "writes past an array": ("st.global.u64 [%rd0+256], %rd3;", "is in no live memory"),
    "no address": ("ld.global.u64 %rd5, [8];", "is in no live memory"),
    "past shared memory": (REVERSED.format(barrier="bar.sync 0;", bytes=248, last=240), "is in no live memory"),
    "no barrier": (REVERSED.format(barrier="", bytes=256, last=248), "in no order"),
    "what nobody wrote": (".shared .align 8 .b8 row[8];\nld.shared.u64 %rd5, [row];", "nobody has written"),
    "the same place": ("st.global.u64 [%rd0], %rd3;", "in no order"),
    "the same byte": ("cvt.u16.u64 %h0, %rd3;\nst.global.u8 [%rd0+3], %h0;", "in no order"),
    "half of what another writes": (
        "setp.ne.s32 %p0, %r0, 0;\n@%p0 bra $other;\nst.global.u64 [%rd0], 1;\nret;\n$other:\nld.global.u32 %r2, [%rd0+4];",
        "in no order",
    ),
    "a plain store beside an atomic access": (
        "setp.ne.s32 %p0, %r0, 0;\n@%p0 bra $other;\nst.global.u64 [%rd0], 1;\nret;\n$other:\n"
        "atom.global.cas.b64 %rd5, [%rd0], 0, 1;",
        "in no order",
    ),
    "what should not change": ("st.global.u64 [%rd3], 1;\nld.global.nc.u64 %rd5, [%rd3];", "does not change"),
    "between two arrays of a thread": (
        ".local .align 8 .b8 own[8];\n.local .align 8 .b8 more[8];\nst.local.u64 [own+8], 1;",
        "outside of the thread's local memory",
    ),
    "the neighbour's place": (
        "ld.global.u64 %rd5, [%rd3];\nsetp.eq.s32 %p0, %r0, 31;\n@%p0 bra $end;\nst.global.u64 [%rd3+8], %rd5;\n$end:",
        "in no order",
    ),
    "some leave before a barrier": ("setp.gt.u32 %p0, %r0, 9;\n@%p0 bra $end;\nbar.sync 0;\n$end:", "not all wait"),
    "two barriers": (
        "setp.gt.u32 %p0, %r0, 9;\n@%p0 bra $other;\nbar.sync 0;\nret;\n$other:\nbar.sync 0;",
        "not all wait",
    ),
    "half of a warp shuffles": (
        "setp.gt.u32 %p0, %r0, 9;\n@%p0 bra $end;\nshfl.sync.bfly.b32 %r2|%p1, %r0, 1, 31, -1;\n$end:",
        "not all wait",
    ),
    "outside of local memory": (".local .align 8 .b8 own[8];\nmov.u64 %rd5, own;\nst.local.u64 [%rd5+8], %rd5;", "local"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told(arena, name):
    body, told = FAULTS[name]
    with pytest.raises(Fault, match=told):
        run(arena, body, np.zeros(32, np.int64))


def test_memory_that_was_given_back(arena):
    place = arena.allocate(64)
    arena.release(place)
    with pytest.raises(Fault, match="no live memory"):
        run(arena, f"ld.global.u64 %rd5, [{place}];")


ACROSS = """
    ld.global.u64 %rd5, [%rd{of}];
    {barrier}
    add.s64 %rd6, %rd0, {size};
    sub.s64 %rd6, %rd6, %rd2;
    st.global.u64 [%rd6+-8], %rd5;
"""


def test_a_barrier_orders_global_memory_in_a_block_alone(arena):
    body = ACROSS.format(of=3, barrier="bar.sync 0;", size=256)
    (found,) = run(arena, body, np.arange(32))
    np.testing.assert_array_equal(found, np.arange(32)[::-1])
    with pytest.raises(Fault, match="in no order"):
        run(arena, ACROSS.format(of=3, barrier="", size=256), np.arange(32))
    with pytest.raises(Fault, match="in no order"):
        run(arena, ACROSS.format(of=3, barrier="bar.sync 0;", size=512), np.arange(64), blocks=2)


def test_two_launches_are_in_order(arena):
    """Each turns the numbers around, so every number comes to another thread than before."""
    body = f"{ACROSS.format(of=3, barrier='bar.sync 0;', size=256)}"
    code, machine = Code(read(f".version 9.0\n.visible .entry k({PAIR})\n{{{START}{body}\nret;\n}}")), Machine(arena)
    place = arena.allocate(256)
    offset = place - arena.address
    arena.bytes[offset : offset + 256] = np.arange(32).view(np.uint8)
    for _ in range(3):
        machine.run(code, (1, 1, 1), (32, 1, 1), (place, 0))
    np.testing.assert_array_equal(arena.bytes[offset : offset + 256].view(np.int64), np.arange(32)[::-1])
    arena.runs -= 1  # as if the next were the same launch
    with pytest.raises(Fault, match="in no order"):
        machine.run(code, (2, 1, 1), (16, 1, 1), (place, 0))
    arena.release(place)


@pytest.mark.parametrize(
    "line",
    ["vote.sync.any.pred %p0, %p1, -1;", "add.sat.s16 %r2, %r3, %r4;", "cvt.rz.f32.f64 %f0, %fd0;", "bar.sync 1;"],
)
def test_what_is_not_understood_is_no_silent_nothing(arena, line):
    with pytest.raises(Unknown):
        run(arena, line)


# ---- memory


def test_an_arena_gives_and_takes_back():
    arena = Arena(1 << 14)
    places = [arena.allocate(n) for n in (1, 1000, 256)]
    assert all(place % 256 == 0 for place in places)
    with pytest.raises(MemoryError):
        arena.allocate(1 << 14)
    for place in places[::-1]:
        arena.release(place)
        arena.release(place)
    assert arena.free == [(0, 1 << 14)]
    assert not arena.live.any()


# ---- how memory is used


@pytest.mark.parametrize(("step", "sectors"), [(0, 1), (4, 4), (8, 8), (64, 32)])
def test_sectors_that_a_warp_moves(arena, step, sectors):
    """32 threads that read 4 bytes each: one place, neighbours, every second, one in each sector."""
    text = f".version 9.0\n.visible .entry k({PAIR})\n{{{START}mul.wide.u32 %rd5, %r0, {step};\nadd.s64 %rd5, %rd0, %rd5;\n"
    code, machine = Code(read(text + "ld.global.f32 %f0, [%rd5];\nret;\n}")), Machine(arena)
    machine.traffic = Traffic()
    place = arena.allocate(4096)
    machine.run(code, (2, 1, 1), (64, 1, 1), (place, 0))
    arena.release(place)
    ((moved, fewest),) = machine.traffic.of_kernels().values()
    assert moved == sectors * 4
    assert fewest == (1 if step == 0 else 4) * 4
