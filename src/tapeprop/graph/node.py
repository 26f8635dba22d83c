"""The nodes of a graph: a layer, and how what reaches it is merged."""

from __future__ import annotations

from typing import Any

from tapeprop.errors import GraphError
from tapeprop.graph.merge import MergeMode
from tapeprop.layers.container import Sequential
from tapeprop.layers.edits import edited
from tapeprop.layers.layer import Layer, check_layer


class LayerNode:
    """A place in a graph. Its identity is the object: neither name nor layer makes two nodes one.

    layer: what is computed; the same layer in two nodes shares its weights. merge_mode: how several incoming tensors
    become one; a MergeMode or its value. name: shown in errors and in state keys; explicit names differ within a graph.
    checkpoint: compute this node's inner results again in backward instead of keeping them from forward on: less memory,
    more work, the same bits. Its own result and what reaches it are kept where backward reads them. A graph in the node
    is recomputed as a whole.

    frozen: no gradient and no update for the parameters of this node, wherever else they are used. All of these may be
    set at any time; graphs see it at their next use. GraphError for what is no layer, no mode or no name.
    """

    def __init__(
        self,
        layer: Layer,
        merge_mode: MergeMode | str = MergeMode.SUM,
        name: str | None = None,
        *,
        checkpoint: bool = False,
    ):
        self.name = name
        self.layer = layer
        self.merge_mode: MergeMode = merge_mode  # type: ignore[assignment]  # __setattr__ makes a mode of its value
        self.checkpoint = checkpoint
        self.frozen = False
        #: The optimizer of this node's parameters; None: the graph's.
        self.optimizer: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, self._checked(name, value))
        edited()

    def _checked(self, name: str, value: Any) -> Any:
        """What is kept as the attribute `name`."""
        if name == "layer":
            return check_layer(
                value, type(self).__name__ if self.name is None else f"{type(self).__name__} {self.name!r}"
            )
        if name == "merge_mode":
            return MergeMode.of(value)
        if name == "name" and value is not None and not (isinstance(value, str) and value):
            raise GraphError(f"{type(self).__name__}: expected a name or None, got {value!r}")
        if name in ("checkpoint", "frozen"):
            return bool(value)
        return configured(value, {}) if name == "optimizer" else value

    def set_optimizer(self, optimizer: Any, **params: Any) -> None:
        """Gives this node an optimizer of its own, in place of the graph's; None takes it away.

        optimizer: an optimizer, of which `params` override settings, or its class, which takes them. TypeError for a
        setting that it does not have.
        """
        self.optimizer = configured(optimizer, params)

    @property
    def param_size(self) -> tuple[int, int]:
        """(weights, biases) of its layer."""
        return self.layer.param_size

    @property
    def layer_count(self) -> int:
        """The number of layers in it."""
        return self.layer.layer_count

    def out_shape(self, in_shape: Any) -> Any:
        """The shape of its layer's result."""
        return self.layer.out_shape(in_shape)

    def structure_key(self) -> tuple:
        """What tracing depends on, to be compared before and after an edit."""
        return (self, self.layer.structure_key(), self.merge_mode, self.name, self.checkpoint)

    def __str__(self) -> str:
        return self.name if self.name is not None else type(self).__name__

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{'' if self.name is None else f' {self.name!r}'}: {self.layer!r}>"


class SequentialNode(LayerNode):
    """LayerNode(Sequential(*layers))."""

    def __init__(
        self,
        *layers: Layer | tuple[str, Layer],
        merge_mode: MergeMode | str = MergeMode.SUM,
        name: str | None = None,
        checkpoint: bool = False,
    ):
        super().__init__(Sequential(*layers), merge_mode, name, checkpoint=checkpoint)


def configured(optimizer: Any, params: dict[str, Any]) -> Any:
    """An optimizer with settings: the class called with them, or a copy of the object with them overridden."""
    if isinstance(optimizer, type):
        return optimizer(**params)
    if optimizer is not None and not hasattr(optimizer, "hyper"):
        raise GraphError(f"set_optimizer: expected an optimizer such as SGD(lr=0.01), got {optimizer!r}")
    if not params:
        return optimizer
    if not hasattr(optimizer, "with_params"):
        raise GraphError(f"set_optimizer: expected an optimizer to set {', '.join(params)} of, got {optimizer!r}")
    return optimizer.with_params(**params)
