"""The planner: no two live values overlap, sharing changes nothing but the size, state effects land where they belong."""

import itertools

import pytest
from compiler.programs import leaf_place, programs
from hypothesis import given, settings

from tapeprop import ops
from tapeprop.compiler.encode import encode
from tapeprop.compiler.passes import optimize
from tapeprop.compiler.plan import Place, plan
from tapeprop.compiler.verify import verify
from tapeprop.errors import CompileError
from tapeprop.ir import Input, Program, Span, Tensor, reachable


@settings(max_examples=60)
@given(programs())
def test_live_values_never_overlap(case):
    program = optimize(case[0])
    found = plan(program, {}, leaf_place({}))
    inherited = 0
    for (a, (a0, a1)), (b, (b0, b1)) in itertools.combinations(found.lifetimes.items(), 2):
        if a1 < b0 or b1 < a0:
            continue
        pa, pb = found.places[a], found.places[b]
        if pa.offset < pb.offset + found.types[b].nbytes and pb.offset < pa.offset + found.types[a].nbytes:
            # only an operand that dies where a result takes its memory over may touch it
            assert a1 == b0 or b1 == a0
            inherited += 1
            first, second = (a, b) if a0 < b0 else (b, a)
            step = found.steps[found.lifetimes[second][0]]
            assert any(
                (step.instruction.results.index(second), k) in step.instruction.op.inplace_pairs(step.instruction)
                for k in range(len(step.instruction.operands))
            )
            assert first.dtype == second.dtype


@settings(max_examples=60)
@given(programs())
def test_tapes_verify_and_sharing_only_saves(case):
    program = optimize(case[0])
    names = {}
    shared = plan(program, {}, leaf_place(names))
    apart = plan(program, {}, leaf_place(names), share=False)
    assert shared.arena_bytes <= apart.arena_bytes == apart.unshared_bytes
    for found in (shared, apart):
        tape = encode(found, [span.name for span in program.spans])
        sizes = dict.fromkeys(names.values(), 10**6) | {"arena": found.arena_bytes}
        verify(tape, sizes)


def chain():
    x = Tensor((100,), "float32", source=Input(0))
    parts = [x]
    for _ in range(6):
        parts.append(ops.sum(parts[-1], axis=0, keepdims=True) + parts[-1])
    return Program([Span("all", reachable([parts[-1]]))], [x], [parts[-1]])


def test_a_chain_needs_two_buffers_not_six():
    found = plan(optimize(chain()), {}, leaf_place({}))
    assert found.arena_bytes < 0.5 * found.unshared_bytes


def test_the_verifier_sees_an_overwritten_operand():
    program = optimize(chain())
    found = plan(program, {}, leaf_place({}), share=False)
    for tensor, place in list(found.places.items()):
        if place.buffer == "arena":
            found.places[tensor] = Place("arena", 0)
    tape = encode(found, ["all"])
    with pytest.raises(CompileError, match="overwritten"):
        verify(tape, {"arena": found.arena_bytes, "leaf0": 400})


def test_the_verifier_sees_a_row_that_leaves_its_buffer():
    program = optimize(chain())
    tape = encode(plan(program, {}, leaf_place({})), ["all"])
    with pytest.raises(CompileError, match="leaves a buffer"):
        verify(tape, {"arena": 64, "leaf0": 400})


def test_no_barrier_between_rows_that_are_cut_alike():
    x = Tensor((5000,), "float32", source=Input(0))
    a = ops.tanh(x)
    b = ops.exp(a)
    program = Program([Span("one", [a.producer, b.producer])], [x], [a, b])
    tape = encode(plan(program, {}, leaf_place({})), ["one"])
    assert [row.barrier for row in tape.rows] == [False, True]
    c = ops.sum(a)
    program = Program([Span("one", [a.producer, c.producer])], [x], [a, c])
    tape = encode(plan(program, {}, leaf_place({})), ["one"])
    assert [row.barrier for row in tape.rows] == [True, True]
