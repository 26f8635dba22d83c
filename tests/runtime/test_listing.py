"""What a tape's listing says beside its table: which rows make what a row reads, shapes, HTML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import tapeprop as tp
from tapeprop.layers import Activation, Conv2D, Dense, Flatten
from tapeprop.runtime.listing import Listing


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


def test_html() -> None:
    tape = network().build((5, 1, 4, 4)).tape
    page = tape._repr_html_()
    assert "&lt;conv&gt;" in page
    rows = ET.fromstring(f"<div>{page}</div>").findall(".//tbody/tr")
    assert len(rows) == len(tape)
    assert next(cell.text for cell in rows[0]) == "0"
    empty = network().build((5, 1, 4, 4)).diagnose()
    assert len(empty) == 0
    assert ET.fromstring(f"<div>{empty._repr_html_()}</div>").find(".//tr") is None
    assert "run natively" in empty._repr_html_()
