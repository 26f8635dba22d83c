"""A graph as a layer: validation, the traversal that records its nodes, inputs and outputs, weights, description.

`LayerGraph` adds what needs a compiler and a runtime.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop import ops
from tapeprop.errors import CycleError, GraphError, ShapeError
from tapeprop.graph import auto_norm, structure, tables, weights
from tapeprop.graph.editing import EditableGraph, Ends
from tapeprop.graph.merge import merge
from tapeprop.graph.names import check_names
from tapeprop.graph.node import LayerNode
from tapeprop.graph.ports import Ports
from tapeprop.graph.validate import check_structure
from tapeprop.ir import Checkpoint, Parameter, Shape, Tensor, Trace, UndecidedError, at_node, mark, recording
from tapeprop.layers.edits import edits
from tapeprop.layers.layer import Member, traced, tracing, variables_dtype
from tapeprop.layers.sizes import open_shape, plain_shape
from tapeprop.ops.shape import alias

if TYPE_CHECKING:
    from tapeprop.graph.drawing.picture import Picture

#: The trace being recorded by a graph and what can be watched in it: graphs inside add theirs.
_watchable: contextvars.ContextVar[tuple[Trace, dict[Hashable, Tensor]] | None] = contextvars.ContextVar(
    "watchable", default=None
)


@dataclass(frozen=True)
class Traversal:
    """A validated structure: nodes in execution order, the operands of each in declaration order, and their labels."""

    order: list[LayerNode]
    operands: dict[LayerNode, list[LayerNode]]
    labels: dict[LayerNode, str]


class GraphStructure(EditableGraph):
    """A directed acyclic graph of `LayerNode`s, itself a layer.

    graph: {node: [next nodes]}, copied; nodes that only stand in lists are added. root, term: a node or a list of
    nodes, the inputs and outputs in order. seed: the one number from which every layer without a `random_state` draws,
    by its place in the graph; None leaves them to chance.

    `self[node]` and `self.graph` are live: edit them in place at any time. Edges count as often as they are listed, and
    the operands of a merge come in the order of the keys, then of each list. GraphError for what is no node.
    """

    #: The optimizer of nodes that have none of their own.
    _optimizer: Any = None
    #: The input shape (or shapes) that build() was given, for summary().
    _input_shape: Any = None
    #: Whether nodes that lead to no term are left out instead of refused.
    _allow_dead: bool = False
    #: (layer, the norm that build(auto_batch_norm=True) put behind it). Inside another graph only that one's norms count.
    _norms: auto_norm.Norms = ()

    _seen = -1
    _version = 0
    _key: tuple | None = None
    _traversal: tuple[tuple[int, bool], Traversal] | None = None

    def __init__(
        self,
        graph: Mapping[LayerNode, Iterable[LayerNode]] | None = None,
        root: Ends = None,
        term: Ends = None,
        *,
        seed: int | None = None,
    ):
        super().__init__(graph, root, term, seed=seed)

    def __add__(self, other: Any) -> Any:
        joined = super().__add__(other)
        if isinstance(other, GraphStructure):
            joined._norms = (*self._norms, *other._norms)
        return joined

    # ---- validation

    @property
    def version(self) -> int:
        """A number that grows whenever what tracing depends on has been edited, here or in anything inside."""
        now = edits()
        if self._seen != now:
            try:
                key = self.structure_key()
            except RecursionError:
                raise CycleError(
                    f"{type(self).__name__}: expected layers that do not hold the graph they stand in, got "
                    f"graphs inside one another without end: look at what was last assigned to node.layer"
                ) from None
            if key != self._key:
                self._key = key
                self._version += 1
            self._seen = now
        return self._version

    def structure_key(self) -> tuple:
        """What tracing depends on, to be compared before and after an edit."""
        return (
            id(self),
            tuple(node.structure_key() for node in self._edges),
            tuple(map(tuple, self._edges.values())),
            (isinstance(self._root, list), *self.roots),
            (isinstance(self._term, list), *self.terms),
            frozenset(self.stopped),
            self._allow_dead,
        )

    def check(self) -> Traversal:
        """The validated structure, without shapes.

        The errors of `check_structure` name the nodes; nothing is changed.
        """
        asked = (self.version, self._allow_dead)
        if self._traversal is None or self._traversal[0] != asked:
            named = self.labels
            order = check_structure(self._edges, self.roots, self.terms, named, self._allow_dead)
            weights.check_keys(self.walk())
            back = structure.incoming(self._edges)
            self._traversal = asked, Traversal(order, {node: back[node] for node in order}, named)
        return self._traversal[1]

    # ---- tracing

    def trace(self, x: Tensor) -> Tensor:
        """The graph as a layer, x going to its root. GraphError for a graph with several roots or terms."""
        if len(self.roots) > 1 or len(self.terms) > 1:
            raise GraphError(
                f"{type(self).__name__} has {len(self.roots)} roots and {len(self.terms)} terms, but a layer inside "
                f"another graph has one input and one output: put its nodes into that graph, or join both with g1 + g2"
            )
        return self.trace_all([x])[0][0]

    def trace_all(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], dict[Hashable, Tensor]]:
        """Records every node, under an active trace.

        inputs: one tensor for each root. Gives the tensor of each term, and {node: its result} of all nodes, those of
        graphs inside included, for watching. ShapeError, MergeError and the rest name the node.
        """
        traversal, trace, outer = self.check(), tracing(), _watchable.get()
        prefix, inside = trace.node, outer is not None and outer[0] is trace
        watchable: dict[Hashable, Tensor] = outer[1] if outer is not None and inside else {}
        results: dict[LayerNode, Tensor] = {}
        given = dict(zip(self.roots, inputs, strict=True))
        if not inside:
            trace.behind = {id(layer): norm for layer, norm in self._norms}
        token = _watchable.set((trace, watchable))
        try:
            for node in traversal.order:
                label, first = traversal.labels[node], mark()
                with at_node(f"{prefix}.{label}" if prefix else label), _naming_errors(node):
                    x = given[node] if node in given else self._merged(node, traversal, results)
                    y = _checked(traced(node.layer, x))
                    results[node] = watchable[node] = alias(y) if node in trace.watched else y
                if node.checkpoint:
                    trace.checkpoints.append(Checkpoint(first, mark(), results[node]))
        finally:
            _watchable.reset(token)
        if not inside and self._seen != edits():
            self._seen, self._key = edits(), self.structure_key()  # what layers note down while traced is no edit
        return [results[node] for node in self.terms], watchable

    def _merged(self, node: LayerNode, traversal: Traversal, results: Mapping[LayerNode, Tensor]) -> Tensor:
        """The one input of a node that is no root."""
        before = traversal.operands[node]
        operands = [ops.stop_gradient(results[a]) if (a, node) in self._stopped else results[a] for a in before]
        return merge(node.merge_mode, operands, [traversal.labels[a] for a in before], tracing().node)

    def trace_open(
        self, in_shape: Any, training: bool = False, dtype: str | None = None
    ) -> tuple[list[Tensor], dict[Hashable, Tensor]]:
        """`trace_all` for inputs of the shapes that a user gave, which may be open. No numbers are computed.

        dtype: of the inputs; by default that of the layers' variables.
        """
        random = Parameter((2,), np.zeros(2), trainable=False, dtype="int64", name="random state")
        with recording(Trace(dtype or variables_dtype(self), training, random)) as trace:
            return self.trace_all([trace.input(i, shape) for i, shape in enumerate(self.open_shapes(in_shape))])

    def open_shapes(self, in_shape: Any) -> list[Shape]:
        """The symbolic shape of each input, from one shape, a list of shapes, or {root's name: shape}. ShapeError."""
        if isinstance(self._root, list) and isinstance(
            in_shape, tuple
        ):  # one shape, or, as files give lists back, several
            several = bool(in_shape) and all(isinstance(shape, tuple | list) for shape in in_shape)
            in_shape = list(in_shape) if several else [in_shape]
        return [open_shape(shape, i) for i, shape in enumerate(self.arrange_inputs(in_shape, "input shape"))]

    def expected_inputs(self) -> list[tuple[int | None, ...]] | None:
        """The shape of each input as far as the layers know it; None where those of a root do not."""
        found = []
        for node in self.roots:
            seen = {node}
            while node.layer.expected_input() is None and node.layer.keeps_shape:
                following = [n for n in self._edges[node] if n not in seen]
                if not following:
                    break
                node = following[0]
                seen.add(node)
            expected = node.layer.expected_input()
            if expected is None:
                return None
            found.append(expected)
        return found

    def out_shape(self, in_shape: Any) -> Any:
        """The shape of the output for an input of `in_shape`; where root or term is a list, lists of them.

        None stands for an open size. ShapeError, naming the node.
        """
        try:
            outputs, _ = self.trace_open(in_shape)
        except UndecidedError as question:
            raise ShapeError(f"expected the sizes of {in_shape} that decide {question}, got None; give them") from None
        return self.present_outputs([plain_shape(output.shape) for output in outputs])

    def outline(self) -> tuple[Any, ...]:
        """(nodes, edges, roots, terms) as plain text: nodes are (name, layer, merge), edges pairs of names."""
        named = self.labels
        merges = {node: "" if node.merge_mode.value == "sum" else node.merge_mode.name for node in self._edges}
        nodes = tuple((named[node], repr(node.layer), merges[node]) for node in self._edges)
        edges = tuple((named[node], named[target]) for node, following in self._edges.items() for target in following)
        return nodes, edges, tuple(named[node] for node in self.roots), tuple(named[node] for node in self.terms)

    # ---- several inputs and outputs

    def arrange_inputs(self, values: Any, what: str = "input") -> list[Any]:
        """One value for each root, from the value itself, a list, or a dict by name.

        GraphError where one is missing.
        """
        if type(values) is np.ndarray and not isinstance(self._root, list):
            return [values]  # most calls, of which some take microseconds
        return self._ports(self.roots, self._root).split(values, what)

    def arrange_outputs(self, values: Any, what: str = "d_out") -> list[Any]:
        """One value for each term; None, and a name that is missing in a dict, give None."""
        if values is None:
            return [None] * len(self.terms)
        return self._ports(self.terms, self._term).split(values, what, partial=True)

    def present_inputs(self, values: list[Any]) -> Any:
        """A list of one value per root as the caller gets it: bare where `root` is a node, else a `NamedList`."""
        return self._ports(self.roots, self._root).join(values) if isinstance(self._root, list) else values[0]

    def present_outputs(self, values: list[Any]) -> Any:
        """A list of one value per term as the caller gets it: bare where `term` is a node, else a `NamedList`."""
        return self._ports(self.terms, self._term).join(values) if isinstance(self._term, list) else values[0]

    def _ports(self, nodes: list[LayerNode], end: Ends) -> Ports:
        return Ports(tuple(map(self.label_of, nodes)), isinstance(end, list))

    # ---- what the nodes ask for

    def frozen_parameters(self) -> set[Parameter]:
        """The parameters of frozen nodes, here and in graphs inside."""
        found: set[Parameter] = set()
        for node in self._edges:
            if node.frozen:
                found.update(parameter for _, parameter in node.layer.named_parameters())
            else:
                found |= node.layer.frozen_parameters()
        return found

    def checkpoints(self, prefix: str = "") -> Iterator[str]:
        """The dotted names of nodes that are recomputed in backward, each as a whole."""
        for node, name in self.labels.items():
            path = f"{prefix}.{name}" if prefix else name
            if node.checkpoint:
                yield path
            else:
                yield from node.layer.checkpoints(path)

    def assigned_optimizers(self, default: Any = None) -> Iterator[tuple[Parameter, Any]]:
        """(parameter, optimizer or None). A parameter in several nodes comes several times, and the first counts."""
        own = default if self._optimizer is None else self._optimizer
        for node in self._edges:
            yield from node.layer.assigned_optimizers(own if node.optimizer is None else node.optimizer)

    # ---- weights and description

    def walk(self, prefix: str = "", seen: set[int] | None = None) -> Iterator[Member]:
        """As `Layer.walk`; the graph's own norms come behind what they follow."""
        members = super().walk(prefix, seen)
        return members if seen is not None or not self._norms else auto_norm.walk_with_norms(members, self._norms)

    @property
    def layer_count(self) -> int:
        """The number of layers inside, its own norms included; a layer used twice counts twice."""
        return self.count_layers({id(layer): 2 for layer, _ in self._norms})

    def state_dict(self) -> dict[str, np.ndarray]:
        """{`<name or node<i>>.<parameter>`: a copy of its value}, running statistics included."""
        check_names(self.labels)
        return {name: parameter.value.copy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets all parameters, or none. GraphError, ShapeError, DTypeError and NumericsError name the key."""
        check_names(self.labels)
        weights.load(dict(self.named_parameters()), state)

    def summary(self, input_shape: Any = None) -> str:
        """A table of the nodes as text.

        input_shape: adds the shape of each result; None takes the one that build() was given.
        """
        return tables.text_table(self._rows(input_shape), self.param_size, len(self), self.layer_count, str(self))

    def plot(self, path: Any = None, what: str = "graph", *, input_shape: Any = None) -> str:
        """A drawing as text, also written to `path`, whose ending chooses the language; Mermaid without a path.

        .svg: a picture that browsers show, made without other programs; .mmd, .md: Mermaid; .dot, .gv: Graphviz. what: "graph", nodes
        with layers, merges, shapes of results, what is frozen, checkpointed or shared; "tape", of a built graph the rows of `tape` by
        span, each with lines to the rows that read what it makes. input_shape: the shapes in a drawing of the graph follow from it; None
        takes the one that build() was given. A graph that is not valid yet is drawn as it is. GraphError for another ending or `what`,
        NotBuiltError, OSError where the file cannot be written.
        """
        from tapeprop.graph.drawing.files import check_ending, written

        if path is not None:
            check_ending(path)
        return written(self._picture(what, input_shape), path)

    def _picture(self, what: str, input_shape: Any) -> Picture:
        from tapeprop.graph.drawing.picture import graph_picture

        if what != "graph":
            raise GraphError(f"plot: expected what to be 'graph' or 'tape', got {what!r}")
        return graph_picture(self, self._known_results() if input_shape is None else self.trace_open(input_shape)[1])

    def _repr_html_(self) -> str:
        from tapeprop.graph.drawing.notebook import notebook_page

        return notebook_page(self)

    def _known_results(self) -> Mapping[Hashable, Tensor]:
        """{node: its symbolic result} for the input shape of build(); nothing where that does not go through (any more)."""
        try:
            return {} if self._input_shape is None else self.trace_open(self._input_shape)[1]
        except Exception:  # a layer of the user's may raise anything, and a drawing helps most where something is wrong
            return {}

    def _rows(self, input_shape: Any) -> list[tables.Row]:
        shape = self._input_shape if input_shape is None else input_shape
        results: Mapping[Hashable, Tensor] = {}
        if shape is not None:
            _, results = self.trace_open(shape)
        return tables.rows(self._edges, self.labels, results, self._norms)

    # ---- inner

    def _new(self, **options: Any) -> GraphStructure:
        return GraphStructure(**options)

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_seen", "_version", "_key", "_traversal")
        return {name: value for name, value in super().__getstate__().items() if name not in caches}


def _checked(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise GraphError(f"expected trace() to return a Tensor, got {type(y).__name__}: return the result of ops")
    return y


@contextlib.contextmanager
def _naming_errors(node: LayerNode) -> Iterator[None]:
    """Errors raised inside name the node at work; those that are no GraphErrors get a note."""
    try:
        yield
    except GraphError as error:
        name = repr(tracing().node)
        if name in str(error) or f"{name[:-1]}." in str(error):
            raise
        raise type(error)(f"node {name} ({type(node.layer).__name__}): {error}") from error
    except UndecidedError:
        raise
    except Exception as error:
        name = tracing().node
        error.add_note(
            f"while node {name!r} ({node.layer!r}) was traced; a layer's formula is written with tapeprop.ops"
        )
        raise
