"""The optimizers of a graph: which advances which parameter, their state, their learning rates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, StateError
from tapeprop.graph.base import GraphStructure
from tapeprop.graph.node import LayerNode, configured
from tapeprop.ir import Parameter
from tapeprop.layers.edits import edits
from tapeprop.runtime.update import OptimizerState, Unit, set_lr
from tapeprop.runtime.update_rules import check_rule

Where = Callable[[str, Parameter], bool]


class OptimizedGraph(GraphStructure):
    """A graph whose parameters have optimizers: the graph's own, those of its nodes, those set for a predicate.

    What nodes and set_optimizer() say is looked at when it is needed: see `synchronise_optimizers`.
    """

    def __init__(self, graph: Any = None, root: Any = None, term: Any = None, *, seed: int | None = None):
        self._rules: list[tuple[Where, Any]] = []
        super().__init__(graph, root, term, seed=seed)

    def _without_state(self) -> None:
        """As a new graph, or a copy, begins."""
        self._optimizers = OptimizerState()
        self._synchronised: tuple[int, int, bool] | None = None
        self._in_use: dict[str, Any] = {}
        self._running = threading.RLock()

    def _exclusive(self, what: str) -> threading.RLock:
        """The lock that lets one call at a time in: a second thread waits."""
        return self._running

    # ---- who advances what

    def set_optimizer(self, optimizer: Any, where: Where | None = None, **params: Any) -> None:
        """The optimizer of all parameters whose node has none of its own; a new one starts with fresh state.

        where: (name, parameter) -> bool, the parameters it is for; of several calls the latest that fits counts. params override
        its settings. None takes it away; with `where`, that which was set for the same function.
        """
        made = configured(optimizer, params)
        if where is not None and not callable(where):
            raise GraphError(f"set_optimizer: expected where=lambda name, parameter: ..., got {where!r}")
        if where is None:
            self._optimizer = made
        else:
            kept = [rule for rule in self._rules if rule[0] is not where]
            self._rules = kept if made is None else [*kept, (where, made)]
        self._synchronised = None

    def replace_optimizers(
        self, optimizer: Any, nodes: Mapping[LayerNode, Any], rules: Sequence[tuple[Where, Any]]
    ) -> None:
        """Sets all optimizers anew: the graph's own, those of nodes (the others have none), and those for predicates."""
        self._optimizer, self._rules = optimizer, list(rules)
        for node in self.labels:
            node.set_optimizer(nodes.get(node))
        self._synchronised = None

    @property
    def optimizer(self) -> Any:
        """The graph's own optimizer, or None."""
        return self._optimizer

    @property
    def optimizer_units(self) -> list[Unit]:
        """The sets of parameters that advance together, with their step counts and learning rates."""
        return list(self._optimizers.units)

    def split_optimizer(self, parameters: Sequence[Parameter]) -> list[Unit]:
        """The units of just these parameters; units that hold others as well are cut in two."""
        return self._optimizers.split(parameters)

    def optimizer_slot(self, parameter: Parameter, name: str, rule: Any) -> np.ndarray:
        """A live view of an optimizer's per-element state, of the parameter's shape."""
        return self._optimizers.slot(parameter, name, rule)

    def synchronise_optimizers(self) -> None:
        """Lets the optimizer state follow what nodes and set_optimizer() say now."""
        with self._exclusive("set_optimizer()"):
            self._assign_optimizers()

    def _assign_optimizers(self) -> None:
        now = (edits(), self.version, self.built_)
        if self._synchronised == now:
            return
        names = {parameter: name for name, parameter in self.named_parameters()}
        wanted: dict[int, tuple[Any, list[Parameter]]] = {}
        seen: set[Parameter] = set()
        for parameter, optimizer in self._with_norms(self.assigned_optimizers(None)):
            if parameter in seen or not parameter.trainable:
                continue
            seen.add(parameter)
            if optimizer is None or optimizer is self._optimizer:
                fitting = [rule for where, rule in self._rules if where(names[parameter], parameter)]
                optimizer = fitting[-1] if fitting else self._optimizer
            if optimizer is not None:
                wanted.setdefault(id(optimizer), (optimizer, []))[1].append(parameter)
        known = {p: unit.rule for unit in self._optimizers.units for p in unit.parameters}
        for rule, parameters in wanted.values():
            new = [(names[p], p) for p in parameters if known.get(p) is not rule]
            if new:
                check_rule(rule, new)
        own = sorted(wanted.values(), key=lambda entry: entry[0] is not self._optimizer)
        in_use = {names[parameters[0]]: rule for rule, parameters in own}
        if not self.built_:  # what has been taken out since the last build() may come back before the next
            for unit in self._optimizers.units:
                away = [parameter for parameter in unit.parameters if parameter not in seen]
                wanted.setdefault(id(unit.rule), (unit.rule, []))[1].extend(away)
        self._optimizers.assign(list(wanted.values()))
        self._in_use = in_use
        self._synchronised = now

    def _with_norms(self, assigned: Iterable[tuple[Parameter, Any]]) -> Iterator[tuple[Parameter, Any]]:
        """The parameters of the graph's own norms as well, each with the optimizer of the weights that it follows."""
        behind = {layer.weight: norm for layer, norm in self._norms}
        for parameter, optimizer in assigned:
            yield parameter, optimizer
            if parameter in behind:
                yield from ((other, optimizer) for _, other in behind[parameter].named_parameters())

    @property
    def optimizers(self) -> dict[str, Any]:
        """The optimizers at work, the graph's own first, each under the name of the first parameter that it advances."""
        self.synchronise_optimizers()
        return dict(self._in_use)

    @property
    def lr(self) -> float:
        """The learning rate in force: the graph's own optimizer's, or else that of the first node that has one."""
        return self._units_of(next(iter(self.optimizers.values()), None), "lr")[0].scalar("lr")

    def learning_rate(self, of: Any) -> float:
        """The learning rate in force of one optimizer; of: as for update_lr()."""
        return self._units_of(of, "learning_rate()")[0].scalar("lr")

    def update_lr(self, lr: float, of: Any = None) -> None:
        """Sets the learning rate of every optimizer of the graph, or of one.

        of: an optimizer, or a node (or its name) that has one of its own. ValueError unless lr is finite and >= 0; StateError
        without an optimizer; GraphError where `of` names none that is at work here.
        """
        set_lr(self._units_of(of, "update_lr()"), lr)

    def optimizer_of(self, of: Any, what: str = "optimizer_of()") -> Any:
        """The optimizer that `of` names: itself, or that of a node or a node's name. GraphError where it has none."""
        if isinstance(of, str):
            found = [node for node, name in self.labels.items() if name == of]
            if not found:
                raise GraphError(f"{what}: there is no node {of!r}; the nodes are {', '.join(self.labels.values())}")
            of = found[0]
        if not isinstance(of, LayerNode):
            if not hasattr(of, "hyper"):
                raise GraphError(f"{what}: expected an optimizer, a node or the name of a node, got {of!r}")
            return of
        if of.optimizer is None:
            raise GraphError(
                f"{what}: node {self.labels.get(of, str(of))!r} has no optimizer of its own; call its set_optimizer() first, "
                f"or name the optimizer that advances it"
            )
        return of.optimizer

    def _units_of(self, of: Any, what: str) -> list[Unit]:
        """The units of one optimizer, or all."""
        rule = None if of is None else self.optimizer_of(of, what)
        self.synchronise_optimizers()
        if not self._optimizers.units:
            raise StateError(f"{what}: no optimizer yet; call set_optimizer(SGD(lr=0.01)) first")
        found = [unit for unit in self._optimizers.units if rule is None or unit.rule is rule]
        if not found:
            raise GraphError(
                f"{what}: {rule!r} advances no parameter of this graph; expected one of those at work: "
                f"{', '.join(map(repr, self._in_use.values()))}"
            )
        return found
