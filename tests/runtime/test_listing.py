"""What a tape's listing says beside its table: which rows make what a row reads, shapes, HTML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.errors import StateError
from tapeprop.layers import Activation, Conv2D, Dense, Flatten
from tapeprop.runtime.listing import Listing, list_tape


def network() -> tp.LayerGraph:
    """A reshape, which has no row, stands between the convolution and the dense layer."""
    conv = tp.LayerNode(Conv2D(1, 2, 3), name="<conv>")
    flat = tp.LayerNode(Flatten(), name="flat")
    dense = tp.LayerNode(Dense(32, 3), name="dense")
    tanh = tp.LayerNode(Activation.Tanh(), name="tanh")
    return tp.LayerGraph({conv: [flat], flat: [dense], dense: [tanh]}, root=conv, term=tanh, seed=0)


def row(tape: Listing, node: str, span: str = "forward") -> dict:
    found = [row for row in tape if row["node"] == node and row["span"] == span]
    assert found
    return found[0]


def test_after_follows_aliases() -> None:
    tape = network().build((5, 1, 4, 4)).tape
    assert not [found for found in tape if found["node"] == "flat" and found["span"] == "forward"]
    conv, dense, tanh = (row(tape, node) for node in ("<conv>", "dense", "tanh"))
    assert conv["after"] == []
    assert dense["after"] == [int(conv["row"])]
    assert tanh["after"] == [int(dense["row"])]
    assert (dense["shape"], tanh["shape"]) == ("(5, 3)", "(5, 3)")


def test_after_names_earlier_rows_whose_places_are_read() -> None:
    """Each row named writes to a place that the reader reads: as the table says, which knows nothing of `after`."""
    for shape in ((5, 1, 4, 4), (16, 1, 4, 4)):
        tape = network().build(shape).tape
        places = [
            ({place.split("(")[0] for place in found["operands"].split()},
             {place.split("(")[0] for place in found["results"].split()}) for found in tape
        ]  # fmt: skip
        for number, found in enumerate(tape):
            assert found["after"] == sorted(set(found["after"]))
            for made in found["after"]:
                assert made < number
                assert places[made][1] & places[number][0]


def test_values_of_the_arena_come_from_some_row() -> None:
    tape = network().build((5, 1, 4, 4)).tape
    for found in tape:
        if any(place.startswith("arena") for place in found["operands"].split()):
            assert found["after"]


def test_after_with_open_sizes() -> None:
    tape = network().build((None, 1, 4, 4)).tape
    assert row(tape, "dense")["after"]  # the reshape, which is listed among instructions
    assert [row(tape, "tanh")["after"]] == [[int(row(tape, "dense")["row"])]]
    assert row(tape, "dense")["shape"] == "(N, 3)"


def test_open_sizes_that_a_layer_has_to_know() -> None:
    node = tp.SequentialNode(Flatten(), Dense(64, 10))
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, None, 8, 8))
    for ask in (lambda: graph.tape, graph.diagnose, lambda: graph.plot(what="tape")):
        with pytest.raises(StateError, match=r"64 == 64\*C|64\*C == 64.* give build\(\) an input_shape"):
            ask()
    graph.forward(np.zeros((2, 1, 8, 8)))
    assert len(graph.tape) > 0


def test_html() -> None:
    tape = network().build((5, 1, 4, 4)).tape
    page = tape._repr_html_()
    assert "&lt;conv&gt;" in page
    rows = ET.fromstring(f"<div>{page}</div>").findall(".//tbody/tr")
    assert len(rows) == len(tape)
    assert next(cell.text for cell in rows[0]) == "0"
    empty = Listing("a <title>", [], "a footer")._repr_html_()
    assert ET.fromstring(f"<div>{empty}</div>").find(".//tr") is None
    assert "a &lt;title&gt;" in empty
    assert "a footer" in empty


def test_a_diagnosis_as_html() -> None:
    found = network().build((5, 1, 4, 4)).diagnose()
    page = ET.fromstring(f"<div>{found._repr_html_()}</div>")
    heads = [cell.text for cell in page.iter("th")]
    assert heads[-2:] == ["why", "remedy"]
    cells = [[cell.text or "" for cell in row] for row in page.findall(".//tbody/tr")]
    assert [row[heads.index("why")] for row in cells] == [finding["why"] for finding in found]


@pytest.mark.parametrize("batch", [5, 16])
def test_updates_come_after_the_gradients(batch: int) -> None:
    """One row advances neighbours together; it reads what several rows have stored to parts of its gradient."""
    graph = network().build((batch, 1, 4, 4))
    graph.set_optimizer(tp.optimizers.Adam(lr=0.1))
    arguments = (np.zeros((batch, 1, 4, 4)), np.zeros((batch, 3)), tp.losses.MSE(), None)
    with graph.trial_step(graph._step_arguments(*arguments)) as trial:
        tape = list_tape(trial.executable.tape, "step")
    stored = {found["shape"]: int(found["row"]) for found in tape if found["span"] == "backward"}
    gradients = {stored[shape] for shape in ("(2, 1, 3, 3)", "(2,)", "(3, 32)", "(3,)")}
    update = [found for found in tape if found["span"] == "update"]
    assert gradients <= {made for found in update for made in found["after"]}
