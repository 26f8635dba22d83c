"""The folding pass: what scales and shifts the channels of a convolution or dense layer moves into its weights and bias.

Batch norm in evaluation is (y - mean) scale + shift per channel, and y = w x + b is linear, so that

    (w x + b - mean) scale + shift = (scale w) x + ((b - mean) scale + shift):

an instruction and a pass over the activations less for each norm. The new weights depend on parameters alone: they are made in a
span of their own, "fold", which stores them, and which the caller runs only when parameters have changed.

Folded and unfolded agree to rounding, in the measure of the sums |scale w| |x| and of |mean scale|: the products are rounded after
scaling instead of before, and the mean is taken off at the start of a sum instead of at its end. Where it cancels most of y, the
sum itself has been rounded in that measure either way.

A convolution in one dimension is one of images with a single row, whose reshape stands between it and the norm: what keeps the
axis of channels is followed, and stays behind the folded instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tapeprop.compiler.fuse import readers_in, used_outside
from tapeprop.ir import Constant, Instruction, Parameter, Program, Shape, Span, Store, Tensor, reachable
from tapeprop.ops.elementwise import add, multiply, negate, subtract
from tapeprop.ops.shape import reshape

FOLD = "fold"
#: Linear in operand 1, which has an output channel on axis 0; operand 2 is the bias.
LINEAR = ("conv2d", "conv3d", "dense")
AFFINE = ("add", "subtract", "multiply")

#: (shape, dtype) -> a leaf with storage that keeps what is stored to it from run to run.
Storage = Callable[[Shape, str], Tensor]


def fold_affine(program: Program, storage: Storage) -> Program:
    """The program with a span "fold" before the others, whose instructions read parameters and constants alone."""
    outside, fold = used_outside(program), Span(FOLD)
    changing = {store.target for span in program.spans for store in span.stores}
    spans = []
    for span in program.spans:
        keep = outside[span.name] | {store.value for store in span.stores}
        readers = readers_in(span)
        replaced: dict[Instruction, list[Instruction]] = {}
        for call in span.instructions:
            if call.op.name not in LINEAR or not _are_constant(call.operands[1:], changing):
                continue
            chain = _affine_chain(call, readers, keep, changing)
            if chain:
                replaced |= {link: [] for link, _ in chain}
                replaced[call] = _folded(call, chain, storage, fold)
        calls = [made for call in span.instructions for made in replaced.get(call, [call])]
        spans.append(Span(span.name, calls, span.stores))
    if not fold.stores:
        return program
    fold.instructions = reachable(store.value for store in fold.stores)
    return Program([fold, *spans], program.inputs, program.outputs, program.in_lanes)


#: An affine instruction, and what it adds, takes off or multiplies by, (C,); or a reshape that keeps the channels, and None.
Link = tuple[Instruction, Tensor | None]


def _are_constant(tensors: Sequence[Tensor], changing: set[Tensor]) -> bool:
    """Whether all are made of parameters and constants alone. changing: the leaves that the program stores to."""
    read = [*tensors, *(operand for call in reachable(tensors) for operand in call.operands)]
    leaves = {tensor for tensor in read if tensor.producer is None}
    return not leaves & changing and all(isinstance(leaf.source, Parameter | Constant) for leaf in leaves)


def _affine_chain(call: Instruction, readers, keep: set[Tensor], changing: set[Tensor]) -> list[Link]:
    """The affine instructions that follow a linear one, each the only reader of what comes before it, and reshapes between."""
    chain: list[Link] = []
    y = call.results[0]
    while y not in keep and len(readers.get(y, ())) == 1:
        (reader,) = readers[y]
        vector = None
        if not (reader.op.name == "reshape" and reader.results[0].shape[:2] == y.shape[:2]):
            vector = _vector(reader, y)
            if vector is None or not _are_constant([vector], changing):
                break
        chain.append((reader, vector))
        y = reader.results[0]
    while chain and chain[-1][1] is None:
        chain.pop()
    return chain


def _vector(call: Instruction, y: Tensor) -> Tensor | None:
    """What an affine instruction does to the channels of y: a tensor (C,), or None for anything else."""
    formula = call.attributes.get("formula") if call.op.name == "elementwise" else None
    if not formula or formula[0] not in AFFINE or formula[2] != (0, 1):
        return None
    place = call.operands.index(y)
    if place and formula[0] == "subtract":
        return None
    other = call.operands[1 - place]
    if other is y or other.shape != (y.shape[1], *[1] * (y.ndim - 2)):
        return None
    return reshape(other, (y.shape[1],))


def _folded(call: Instruction, chain: list[Link], storage: Storage, fold: Span) -> list[Instruction]:
    """The linear instruction, and the reshapes of the chain, that give what its last gives. The weights are added to `fold`."""
    x, weight, *rest = call.operands
    bias, scale = (rest[0] if rest else None), None
    for link, vector in chain:
        if vector is None:
            continue
        name = link.attributes["formula"][0]
        if name == "multiply":
            scale = vector if scale is None else multiply(scale, vector)
            bias = None if bias is None else multiply(bias, vector)
        elif bias is None:
            bias = negate(vector) if name == "subtract" else vector
        else:
            bias = subtract(bias, vector) if name == "subtract" else add(bias, vector)
    if scale is not None:
        weight = multiply(weight, reshape(scale, (weight.shape[0], *[1] * (weight.ndim - 1))))
    for made in reachable(value for value in (weight, bias) if value is not None):
        made.node = made.node or call.node
    operands = [x]
    for value in (weight, bias):
        if value is not None and value.producer is not None:  # a leaf has a place of its own
            target = storage(value.shape, value.dtype)
            fold.stores.append(Store(value, target))
            value = target
        operands += [] if value is None else [value]
    found = [Instruction(call.op, operands, call.attributes, call.node)]
    for reshaping in (link for link, vector in chain if vector is None):
        before = call.results[0] if len(found) == 1 else found[-1].results[0]
        between = Tensor(before.shape, before.dtype, producer=found[-1])
        found[-1].results = (between,)
        found.append(Instruction(reshaping.op, [between], reshaping.attributes, reshaping.node))
        found[-1].results = reshaping.results
    found[-1].results = chain[-1][0].results
    return found
