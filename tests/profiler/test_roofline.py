import sys

import numpy as np
import pytest
from profiler.profiles import NASTY, ROOFS, profile, row, small, tape
from profiler.timelines import TIMELINES
from runtime.tapes_for_tests import run_program

import tapeprop as tp
from tapeprop.profiler.profile import Roofs
from tapeprop.profiler.roofline import _figure, plot

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def drawn(made):
    """(axes, texts in it, lines, points) of the plot."""
    axes = _figure(made).axes[0]
    points = np.concatenate([found.get_offsets() for found in axes.collections] or [np.zeros((0, 2))])
    return axes, [text.get_text() for text in axes.texts], [line.get_xydata() for line in axes.lines], points


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_the_name_says_the_format(ending, tmp_path):
    path = plot(small(roofs=ROOFS), tmp_path / f"roofline.{ending}")
    assert path == tmp_path / f"roofline.{ending}"
    assert path.read_bytes().startswith(MAGIC[ending.lower()])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_equal_profiles_give_equal_files(ending, tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "salt")
    one, two = (plot(small(roofs=ROOFS), tmp_path / f"{name}.{ending}") for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["roofline", "roofline.gif", "roofline.svg.txt", ".png"])
def test_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.png, \.svg or \.pdf, got "):
        plot(small(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_points_are_rows():
    rows = [row(0), row(1, "backward", flops=9000, traffic=300), row(2, flops=0), row(3, traffic=0)]
    axes, _, _, points = drawn(profile(tape(rows, [1e-6, 3e-6, 1e-6, 1e-6]), roofs=ROOFS))
    np.testing.assert_allclose(points, [[5, 2.0], [30, 3.0]], rtol=1e-6)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert ((left < points[:, 0]) & (points[:, 0] < right) & (low < points[:, 1]) & (points[:, 1] < high)).all()
    areas = [found.get_sizes()[0] for found in axes.collections]
    assert areas[1] - 14 == pytest.approx(3 * (areas[0] - 14))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["forward", "backward"]
    assert len({tuple(found.get_facecolor()[0]) for found in axes.collections}) == 2
    (note,) = axes.figure.texts
    assert note.get_text().startswith("2 rows without operations, 2 us (33.3%), have no place here.")


def test_roofs_are_those_of_the_workers_and_the_dtype():
    _, texts, lines, _ = drawn(small(workers=2, roofs=ROOFS))
    assert texts[:4] == [
        "fma peak, float32: 200 GFLOP/s",
        "L1: 400 GB/s",
        "L2: 200 GB/s",
        "memory: 15 GB/s",
    ]
    peak, *levels = lines
    np.testing.assert_allclose(peak[:, 1], 200)
    for line, rate in zip(levels, (400, 200, 15), strict=True):
        np.testing.assert_allclose(line[:, 1] / line[:, 0], rate)
        assert line[1, 1] == pytest.approx(200)  # up to the peak
    _, texts, *_ = drawn(small(workers=1, roofs=ROOFS))
    assert texts[0] == "fma peak, float32: 100 GFLOP/s"
    made = profile(tape([row(0, flops=1), row(1)], [1e-3, 1e-3]), roofs=ROOFS)
    made.tapes[0].rows[1] = row(1).__class__(1, "forward", "op", "a", "a", (), ("float64 (4)",), flops=5000, traffic=9)
    _, texts, *_ = drawn(made)
    assert texts[0] == "fma peak, float64: 50 GFLOP/s"


@pytest.mark.parametrize("roofs", [None, Roofs(), Roofs({}, ROOFS.bandwidth), Roofs(ROOFS.flops)])
def test_roofs_that_were_not_measured_are_not_drawn(roofs, tmp_path):
    made = small(roofs=roofs)
    _, _, lines, points = drawn(made)
    assert len(points) == 3
    assert len(lines) == (0 if roofs is None else len(roofs.bandwidth.get(1, ())) + bool(roofs.flops))
    assert plot(made, tmp_path / "roofline.png").exists()
    told = any("were not measured" in text.get_text() for text in _figure(made).texts)
    assert told == (roofs is None)


def test_rows_that_take_longest_are_numbered_and_listed():
    rows = [row(i, node=f"node{i}", flops=1000 * (i + 1)) for i in range(40)]
    axes, *_ = drawn(profile(tape(rows, [1e-3 * (40 - i) for i in range(40)]), roofs=ROOFS))
    listed = next(text.get_text() for text in axes.texts if text.get_text().startswith(" #")).splitlines()
    assert [line.split()[-2:] for line in listed[1:]] == [[f"node{i}", "matmul"] for i in range(16)]
    assert listed[1].split()[:4] == ["1", "40", "ms", "4.9%"]
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    assert {text.get_text() for text in numbers} <= {str(i) for i in range(1, 17)}
    assert len(numbers) > 8


def test_labels_do_not_cover_one_another():
    from matplotlib.text import Text

    random = np.random.default_rng(0)
    rows = [row(i, flops=int(f), traffic=1000) for i, f in enumerate(random.integers(900, 1100, 30))]
    axes, *_ = drawn(profile(tape(rows, random.uniform(1e-3, 1.1e-3, 30)), roofs=ROOFS))
    renderer = axes.figure.canvas.get_renderer()
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    boxes = [Text.get_window_extent(text, renderer) for text in numbers]
    assert len(boxes) > 8
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize(
    "name", [NASTY, r"$\frac{", "$x^2$", "漢字", "_" * 300, "a\nb", "\x00", "\ud800", "\x1b[31m", "%"]
)
def test_any_name_is_text(name, tmp_path):
    made = profile(tape([row(0, name, name, node=name)], [1e-3]), what=name, roofs=ROOFS)
    for ending in MAGIC if name == NASTY else ["png"]:
        assert plot(made, tmp_path / f"roofline.{ending}").stat().st_size > 1000


@pytest.mark.parametrize("name", [name for name in TIMELINES if not name.startswith("scattered 1")])
def test_every_profile_can_be_drawn(name):
    made = TIMELINES[name]()
    made.roofs = ROOFS
    _, _, _, points = drawn(made)
    assert np.isfinite(points).all()
    if name == "nothing ran":
        assert _figure(made).texts[0].get_text().startswith("Nothing ran.")


def test_the_callers_matplotlib_stays_as_it_is(tmp_path):
    out, _ = run_program(
        f"""
        import sys
        import matplotlib
        from profiler.profiles import ROOFS, small

        matplotlib.rcParams["font.size"] = 13
        before = dict(dict.items(matplotlib.rcParams))  # asking for the backend by its name would choose one
        small(roofs=ROOFS).plot_roofline({str(tmp_path / "a.png")!r})
        after = dict(dict.items(matplotlib.rcParams))
        print("matplotlib.pyplot" in sys.modules, before == after, len(before) > 100)
        """
    )
    assert out.split() == ["False", "True", "True"]


def test_without_matplotlib(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot_roofline needs matplotlib; pip install 'tapeprop\[viz\]'"):
        plot(small(), tmp_path / "roofline.png")
    assert list(tmp_path.iterdir()) == []


def test_a_real_profile(tmp_path):
    X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    node = tp.LayerNode(tp.layers.Dense(4, 3), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4))
    with tp.profiling() as found:
        graph.predict(X)
    assert found.profile.roofs is not None
    assert found.plot_roofline(str(tmp_path / "roofline.svg")) == tmp_path / "roofline.svg"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.roofline\.png"):
        plot(small(), tmp_path / "absent" / "roofline.png")
