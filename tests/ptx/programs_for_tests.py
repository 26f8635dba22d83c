"""Runs bodies of kernels in PTX on arrays."""

import numpy as np
from ptx.machine import Machine
from ptx.program import read
from ptx.translate import Code

PAIR = ".param .u64 p0, .param .u64 p1"
START = """
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .f32 %f<20>; .reg .f64 %fd<20>;
    ld.param.u64 %rd0, [p0];
    ld.param.u64 %rd1, [p1];
    mov.u32 %r0, %tid.x;
    mov.u32 %r30, %ctaid.x;
    mov.u32 %r31, %ntid.x;
    mad.lo.s32 %r1, %r30, %r31, %r0;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd3, %rd0, %rd2;
    add.s64 %rd4, %rd1, %rd2;
"""


def run(arena, body, *arrays, threads=32, blocks=1, outside=""):
    """Runs a kernel's body on up to two arrays, whose addresses are p0 and p1; what they hold afterwards.

    %r0 is the thread, %r1 the thread of the launch; %rd3 and %rd4 are the addresses of its 8 bytes in either array.
    """
    text = f".version 9.0\n.target sm_90a\n.address_size 64\n{outside}\n.visible .entry k({PAIR})\n{{{START}{body}\nret;\n}}"
    code = Code(read(text))
    places = []
    for array in arrays:
        places.append(arena.allocate(array.nbytes))
        offset = places[-1] - arena.address
        arena.bytes[offset : offset + array.nbytes] = array.view(np.uint8).reshape(-1)
    try:
        Machine(arena).run(code, (blocks, 1, 1), (threads, 1, 1), (*places, 0, 0)[:2])
        found = []
        for place, array in zip(places, arrays, strict=True):
            offset = place - arena.address
            found.append(arena.bytes[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape).copy())
        return found
    finally:
        for place in places:
            arena.release(place)
