"""Einstein's summation, as products of matrices: operands are joined from left to right.

Of two operands the labels that both have and nobody reads later are the inner axis of a product of matrices; those that both have and
somebody reads are its batch. Without an inner axis the product is taken element by element.
"""

from __future__ import annotations

import string

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.ir.dims import product


@converter("Einsum")
def einsum(node, *operands):
    terms, wanted = _labels(node, str(node.get("equation", "")), [x.ndim for x in operands])
    parts = [_diagonal(node, x, labels) for x, labels in zip(operands, terms, strict=True)]
    found, labels = parts[0]
    for place, (x, others) in enumerate(parts[1:], start=1):
        later = {*wanted, *(label for _, term in parts[place + 1 :] for label in term)}
        found, labels = _joined(node, found, labels, x, others, later)
    found, labels = _summed(found, labels, wanted)
    return ops.transpose(found, [labels.index(label) for label in wanted])


def _labels(node, equation, ranks):
    """(the labels of each operand, those of the result): letters, and (number) for the axes that "..." stands for."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        raise node.fail(f"an equation of {len(ranks)} operands", repr(equation))
    terms = [_expanded(node, text, rank) for text, rank in zip(texts, ranks, strict=True)]
    ahead = sorted({label for term in terms for label in term if isinstance(label, int)})
    letters = [label for term in terms for label in term if isinstance(label, str)]
    if not arrow:
        return terms, [*ahead, *sorted(label for label in set(letters) if letters.count(label) == 1)]
    before, ellipsis, after = right.partition("...")
    wanted = [*before, *(ahead if ellipsis else ()), *after]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= {*letters, *ahead} or (ahead and not ellipsis):
        raise node.fail("a result of labels of the operands, each once, and of all that ... stands for", repr(equation))
    return terms, wanted


def _expanded(node, text, rank):
    """The labels of an operand. Axes of "..." are numbered from the back, -1 being the last: so they broadcast."""
    before, ellipsis, after = text.partition("...")
    more = rank - len(before) - len(after)
    if not set(before + after) <= set(string.ascii_letters) or more < 0 or (more and not ellipsis):
        raise node.fail(f"{rank} letters for an operand of {rank} axes, or ...", repr(text))
    return [*before, *range(-more, 0), *after]


def _diagonal(node, x, labels):
    """(x with each label once, the labels): of axes with one label the diagonal is taken."""
    labels = list(labels)
    while len(set(labels)) < len(labels):
        first = next(axis for axis, label in enumerate(labels) if labels.count(label) > 1)
        second = labels.index(labels[first], first + 1)
        size = x.shape[first]
        if size != x.shape[second] or not isinstance(size, int):
            raise node.fail(f"equal known sizes of the axes {labels[first]!r}", f"{size} and {x.shape[second]}")
        rest = [axis for axis in range(x.ndim) if axis not in (first, second)]
        flat = ops.transpose(x, [*rest, first, second])
        flat = ops.reshape(flat, (*(x.shape[axis] for axis in rest), size * size))
        x, labels = flat[..., :: size + 1], [*(labels[axis] for axis in rest), labels[first]]
    return x, labels


def _summed(x, labels, needed):
    """x without the axes that nobody needs."""
    gone = [axis for axis, label in enumerate(labels) if label not in needed]
    return (ops.sum(x, gone) if gone else x), [label for label in labels if label in needed]


def _joined(node, a, a_labels, b, b_labels, later):
    """(the product of two operands, its labels)."""
    a, a_labels = _without_ones(a, a_labels, b, b_labels)
    b, b_labels = _without_ones(b, b_labels, a, a_labels)
    a, a_labels = _summed(a, a_labels, {*later, *b_labels})
    b, b_labels = _summed(b, b_labels, {*later, *a_labels})
    size = {**dict(zip(b_labels, b.shape)), **dict(zip(a_labels, a.shape))}
    both = [label for label in a_labels if label in b_labels]
    batch, inner = [label for label in both if label in later], [label for label in both if label not in later]
    rows = [label for label in a_labels if label not in both]
    columns = [label for label in b_labels if label not in both]
    if any(size[label] != b.shape[b_labels.index(label)] for label in both):
        raise node.fail("equal sizes of equal labels", f"{a.shape} and {b.shape}")

    def shape(*groups):
        return [product(size[label] for label in group) for group in groups]

    left = ops.transpose(a, [a_labels.index(label) for label in (*batch, *rows, *inner)])
    right = ops.transpose(b, [b_labels.index(label) for label in (*batch, *inner, *columns)])
    left, right = ops.reshape(left, shape(batch, rows, inner)), ops.reshape(right, shape(batch, inner, columns))
    found = ops.matmul(left, right) if inner else ops.multiply(left, right)
    labels = [*batch, *rows, *columns]
    return ops.reshape(found, [size[label] for label in labels]), labels


def _without_ones(x, labels, other, other_labels):
    """x without axes of size 1 that the other operand has longer: they broadcast."""
    gone = {
        axis
        for axis, label in enumerate(labels)
        if x.shape[axis] == 1 and label in other_labels and other.shape[other_labels.index(label)] != 1
    }
    kept = [axis for axis in range(len(labels)) if axis not in gone]
    return ops.reshape(x, [x.shape[axis] for axis in kept]), [labels[axis] for axis in kept]
