import re
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from profiler.profiles import NASTY, profile, row, small, tape
from profiler.timelines import TIMELINES, micro_batches

import tapeprop as tp
from tapeprop.profiler.flame import folded, stacks, write

SVG = "{http://www.w3.org/2000/svg}"


def frames_of(made, folder):
    """[(name, x, width, depth, title, text)] of a picture."""
    root = ElementTree.parse(write(made, folder / "flame.svg")).getroot()
    return [
        (
            frame.get("data-name"),
            float(frame.get("x")),
            float(frame.get("width")),
            int(frame.get("data-d")),
            frame.find(f"{SVG}title").text,
            frame.find(f"{SVG}text").text or "",
        )
        for frame in root.iter(f"{SVG}svg")
        if frame.get("class") == "frame"
    ]


def test_a_line_for_each_stack():
    made = profile(tape([row(0, node="stem", op="conv2d"), row(1, "update", "sgd", node="")], [1.234e-6, 5e-9]))
    assert folded(made) == "forward;stem;conv2d 1234\nupdate;(update);sgd 5\n"
    assert made.folded() == folded(made)


def test_times_are_of_a_step_and_those_of_the_table():
    for made in (small(), micro_batches()):
        seconds = sum(figure.seconds for figure in made.figures("op"))
        assert sum(stacks(made).values()) == pytest.approx(seconds, rel=1e-12)
    assert stacks(micro_batches())["forward", "a", "matmul"] == pytest.approx(3e-3)


def test_rows_of_one_op_in_one_node_are_one():
    made = profile(tape([row(0), row(1), row(2, "backward")], [1e-3, 2e-3, 4e-3]))
    assert stacks(made) == pytest.approx({("forward", "a", "matmul"): 3e-3, ("backward", "a", "matmul"): 4e-3})


def test_several_tapes_stand_under_their_names():
    one, two = tape([row(0)], [1e-3], steps=3), tape([row(0)], [2e-3], steps=2, name="predict")
    assert folded(profile(one, two)) == "train_step;forward;a;matmul 3000000\npredict;forward;a;matmul 4000000\n"
    same = tape([row(0)], [1e-3], steps=3), tape([row(0)], [2e-3], steps=2)
    assert folded(profile(*same)) == "train_step;forward;a;matmul 7000000\n"


@pytest.mark.parametrize("name", [NASTY, "a b", "a;b", "100%", "漢字", "tab\there\r\n", "\x00", "%3B", "\u2028 \xa0"])
def test_names_come_back(name):
    made = profile(tape([row(0, op=name, node=name), row(1, op=name, node="b")], [1e-6, 1e-6]))
    lines = folded(made).split("\n")
    assert lines[-1] == ""
    for line, node in zip(lines[:2], (name, "b"), strict=True):
        stack, count = line.rsplit(" ", 1)
        assert not re.search(r"\s", stack)
        assert [unquote(part) for part in stack.split(";")] == ["forward", node, name]
        assert count == "1000"


def test_a_surrogate_alone_can_be_written():
    made = profile(tape([row(0, node="\ud800")], [1e-6]))
    assert folded(made).encode() == b"forward;?;matmul 1000\n".replace(b"?", b"%3F")


@pytest.mark.parametrize("name", TIMELINES)
def test_frames_stand_on_one_another(name, tmp_path):
    frames = frames_of(TIMELINES[name](), tmp_path)
    assert frames[0][3] == 0
    below = {}
    for _, x, width, depth, *_ in frames:  # in the order of the file: what stands on a frame comes after it
        if depth:
            left, right = below[depth - 1]
            assert left - 0.011 <= x  # pixels are written with two digits
            assert x + width <= right + 0.021
        below[depth] = x, x + width
        assert 0 <= width <= 1180


def test_widths_are_times(tmp_path):
    widths = {(name, depth): width for name, _, width, depth, *_ in frames_of(small(), tmp_path)}
    assert widths["train_step", 0] == 1180
    assert widths["forward", 1] == pytest.approx(1180 * 3.1 / 4, abs=0.01)
    assert widths[NASTY, 2] == pytest.approx(1180 * 2 / 4, abs=0.01)
    assert widths["matmul_grad", 3] == pytest.approx(1180 * 0.9 / 4, abs=0.01)


def test_hints(tmp_path):
    titles = {name: title for name, *_, title, _ in frames_of(small(), tmp_path)}
    assert titles["train_step"] == "train_step\n4 ms of a step, 100.0%"
    assert titles["matmul_grad"] == "matmul_grad\nin backward / a\n900 us of a step, 22.5%"


def test_text_is_cut_to_its_frame(tmp_path):
    long = "a_very_long_name_of_a_node_" * 9
    rows = [row(0, node=long), row(1, node="漢" * 200), row(2, node="narrow")]
    texts = {
        name: (text, width)
        for name, _, width, _, _, text in frames_of(profile(tape(rows, [1e-3, 1e-3, 2e-5])), tmp_path)
    }
    text, width = texts[long]
    assert text == long[: len(text) - 2] + ".."
    assert width - 20 < 7.25 * len(text) < width
    text, width = texts["漢" * 200]
    assert width - 30 < 7.25 * (2 * len(text) - 2) < width  # twice as wide as others
    assert texts["narrow"][0] == ""


def test_frames_too_narrow_to_see_are_left_out(tmp_path):
    rows = [row(i, node=f"n{i}") for i in range(3)]
    frames = frames_of(profile(tape(rows, [1.0, 1e-6, 1.0])), tmp_path)
    assert {name for name, *_ in frames} == {"train_step", "forward", "n0", "n2", "matmul"}


@pytest.mark.parametrize("name", [NASTY, "]]></script>", "\x00\x1b", "\ud800", "\ufffe", "漢字", "a&b<c>'\""])
def test_any_name_is_text(name, tmp_path):
    made = profile(tape([row(0, op=name, node=name)], [1e-3], name=name), what=name)
    path = write(made, tmp_path / "flame.svg")
    shown = re.sub("[\x00\x1b\ud800\ufffe]", "\ufffd", name)
    root = ElementTree.fromstring(path.read_bytes())  # refuses what is no XML
    assert [frame.get("data-name") for frame in root.iter(f"{SVG}svg")][1:] == [shown, "forward", shown, shown]
    (script,) = root.iter(f"{SVG}script")
    (other,) = ElementTree.parse(write(small(), tmp_path / "other.svg")).getroot().iter(f"{SVG}script")
    assert script.text == other.text  # nothing of a profile gets there


def test_the_picture_needs_nothing_else(tmp_path):
    text = write(small(), tmp_path / "flame.svg").read_text()
    links = re.findall(r"(?:https?:)?//[^\s\"')]+", text)
    assert links == ["http://www.w3.org/2000/svg"]
    assert "@import" not in text
    assert "url(" not in text


def test_nothing_ran(tmp_path):
    assert folded(profile()) == ""
    (frame,) = frames_of(profile(what="profiling"), tmp_path)
    assert frame[0] == "profiling"
    assert "Nothing ran." in (tmp_path / "flame.svg").read_text()


def test_dropped_spans_are_told(tmp_path):
    assert "12,345" in write(small(dropped=12345), tmp_path / "flame.svg").read_text()


def test_a_real_profile(tmp_path):
    X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    node = tp.LayerNode(tp.layers.Dense(4, 3), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4))
    graph.set_optimizer(tp.optimizers.SGD(lr=0.1))
    made = graph.profile(X, np.arange(12) % 3, tp.losses.CrossEntropy(), repeats=3)
    assert made.to_flame_graph(str(tmp_path / "flame.svg")) == tmp_path / "flame.svg"
    assert re.search(r"^forward;only;dense\S* \d+$", made.folded(), re.MULTILINE)


@pytest.mark.parametrize("name", ["flame", "flame.png", "flame.svg.gz"])
def test_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"expected a path that ends in \.svg, got "):
        write(small(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.flame\.svg"):
        write(small(), tmp_path / "absent" / "flame.svg")
