"""The page without a browser: what is embedded, and that nothing in it can load or run anything else."""

import base64
import hashlib
import html.parser
import json
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from profiler.profiles import NASTY, ROOFS, profile, row, small, tape

from tapeprop.profiler import tables
from tapeprop.profiler.colours import phase_colour
from tapeprop.profiler.page import SCRIPTS, page
from tapeprop.profiler.page.spans import SPANS, Strings, shown_runs
from tapeprop.profiler.profile import Profile


class Parts(html.parser.HTMLParser):
    """The elements of a page: [(tag, attributes)], and what stands in title, style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("title", "style", "script") else None
        if self._open:
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts[self._open][-1] += data


def data_of(found):
    return json.loads(Parts(page(found)).texts["script"][0])


def strings_of(data):
    return data["strings"].__getitem__


def spans_of(run):
    """float64 (workers, steps, slots, 2) of nanoseconds, NaN where a worker took no part."""
    pairs = np.array(run["spans"], float).reshape(run["workers"], -1, 2)
    times = np.full(pairs.shape, np.nan)
    for worker, spans in enumerate(pairs):
        now = run["begin"]
        for i, (gap, length) in enumerate(spans):
            if length >= 0:
                times[worker, i] = now + gap, now + gap + length
                now += gap + length
    return times.reshape(run["workers"], run["steps"], len(run["rows"]), 2)


def test_it_is_one_document_with_its_data_and_one_script():
    parts = Parts(page(small()))
    tags = [tag for tag, _ in parts.tags]
    assert [tags.count(tag) for tag in ("html", "head", "body", "title", "style", "script", "main")] == [1] * 5 + [2, 1]
    assert parts.texts["title"] == ["tapeprop profile: train_step, 2026-01-02T03:04:05+00:00"]
    assert json.loads(parts.texts["script"][0])["what"] == "train_step"


def test_no_file_is_left_out_and_none_has_grown_long():
    folder = resources.files("tapeprop.profiler.page")
    scripts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith(".js")}
    assert {*scripts} == {f"{name}.js" for name in SCRIPTS}
    assert all(text.startswith("// ") and len(text.splitlines()) <= 400 for text in scripts.values())
    assert not any("</" in text or "{{" in text for text in scripts.values())


def test_nothing_is_loaded_and_the_policy_forbids_it():
    text = page(small(roofs=ROOFS))
    parts = Parts(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\b)", text)
    assert not [a for _, attrs in parts.tags for a in attrs if a in ("src", "srcset", "action") or a.startswith("on")]
    assert [attrs["href"] for _, attrs in parts.tags if "href" in attrs] == ["data:,"]
    assert not re.search(r"@import|url\(", parts.texts["style"][0])
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", text)
    (policy,) = (a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(None, 1) for rule in policy.split(";"))
    assert rules.keys() == {"default-src", "img-src", "script-src", "style-src"}
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")


def test_the_policy_names_the_script_and_the_style_that_are_there():
    parts = Parts(page(small()))
    (policy,) = (a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("script", parts.texts["script"][1]), ("style", parts.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_names_cannot_leave_the_data():
    found = small()
    found.what = NASTY + "{{script}}"
    found.machine["cpu"] = "<!--<script>" + NASTY
    parts = Parts(page(found))
    assert [tag for tag, _ in parts.tags].count("script") == 2
    assert parts.texts["title"][0].startswith(f"tapeprop profile: {NASTY}{{{{script}}}}, ")
    data = json.loads(parts.texts["script"][0])
    assert data["what"] == found.what
    assert ["cpu", found.machine["cpu"]] in data["machine"]
    assert data["outlines"][0]["nodes"][1][0] == NASTY


@pytest.mark.parametrize("name", ["\ud800", "\u2028", "\x00", "a\u202eb", "ü" * 5000])
def test_odd_characters_are_written(name, tmp_path):
    found = profile(tape([row(0, node=name)], [1e-3]), what=name)
    path = found.to_html(tmp_path / "page.html")
    data = json.loads(Parts(path.read_text(encoding="utf-8")).texts["script"][0])
    assert name in data["strings"]
    assert data["what"] == name


@pytest.mark.parametrize("by", tables.BY)
def test_figures_are_those_of_the_table(by):
    found = small(workers=2, roofs=ROOFS)
    data = data_of(found)
    text = strings_of(data)
    expected = tables.figures(found, by)
    for f, (key, rows, numbers, texts, names) in zip(expected, data["scopes"][0]["figures"][by], strict=True):
        assert (text(key), rows) == (f.key, [number for _, number in f.rows])
        assert numbers[0] == pytest.approx(f.seconds, rel=1e-5)
        assert tuple(map(text, texts)) == tables.cells(f, any(tape.workers > 1 for tape in found.tapes))
        assert [text(name) for name in names] == [f.phase, f.op, f.node, f.layer]
    assert data["scopes"][0]["unit"] == "of one step"


def test_several_tapes_each_have_figures_and_all_together():
    short, long = tape([row(0)], [1e-3], name="forward"), tape([row(0), row(1)], [2e-3, 3e-3], name="fit", first=1.0)
    found = profile(short, long)
    data = data_of(found)
    text = strings_of(data)
    assert [scope["tape"] for scope in data["scopes"]] == [1, 0, None]
    fit, forward, everything = (scope["figures"]["instruction"] for scope in data["scopes"])
    assert [figure[1] for figure in fit] == [[2], [1]]
    assert [figure[1] for figure in forward] == [[0]]
    assert [text(figure[0]) for figure in everything] == ["fit 1 matmul", "fit 0 matmul", "forward 0 matmul"]
    assert [scope["unit"] for scope in data["scopes"]] == ["of one step", "of one step", "in all"]
    alone = Profile("fit", "", {}, [long[0]], [replace(long[1], tape=0)], 1.0)
    assert [tuple(map(text, figure[3])) for figure in fit] == [tables.cells(f, False) for f in tables.figures(alone)]


def test_spans_are_nanoseconds_since_the_first():
    found = small(workers=2)
    run = found.runs[0]
    run.begin += 3.5
    run.end += 3.5
    data = data_of(found)
    (shown,) = data["runs"]
    times = spans_of(shown)
    assert shown["begin"] == 0
    assert all(isinstance(number, int) for number in shown["spans"])
    np.testing.assert_allclose(times[..., 0], (run.begin.swapaxes(0, 1) - 3.5) * 1e9, atol=1)
    np.testing.assert_allclose(times[..., 1], (run.end.swapaxes(0, 1) - 3.5) * 1e9, atol=1)
    assert data["shown"] == [[2, 2]]


def test_a_worker_that_took_no_part_has_no_spans_there():
    found = small(workers=2)
    run = found.runs[0]
    run.begin[:, 1, 1] = run.end[:, 1, 1] = np.nan
    run.begin[0, 0, 0] = run.end[0, 0, 0] = np.nan
    times = spans_of(data_of(found)["runs"][0])
    absent = np.isnan(times[..., 0])
    assert absent[1, :, 1].all()
    assert absent[0, 0, 0]
    assert absent.sum() == 3
    expected = (run.begin.swapaxes(0, 1) - np.nanmin(run.begin)) * 1e9
    np.testing.assert_allclose(times[..., 0], expected, atol=1)


def test_a_run_without_any_span_is_left_out():
    made, run = tape([row(0)], [1e-3])
    run.begin[:] = run.end[:] = np.nan
    data = json.loads(json.dumps(shown_runs(profile((made, run)), Strings())))
    assert data == {"tracks": [], "runs": [], "shown": [[0, 2]]}


def many_steps(count, rows=10, **more):
    return tape([row(i) for i in range(rows)], [1e-6] * rows, steps=count, **more)


def test_the_last_steps_are_kept_that_fit():
    data = shown_runs(profile(many_steps(100)), Strings(), limit=255)
    (run,) = data["runs"]
    assert (run["steps"], run["number"], len(run["spans"])) == (25, 75, 25 * 10 * 2)
    assert data["shown"] == [[25, 100]]


def test_the_bound_is_some_tens_of_thousands():
    data = shown_runs(profile(many_steps(SPANS)), Strings())
    assert sum(len(run["spans"]) // 2 for run in data["runs"]) == SPANS == 50_000


def test_one_step_is_shown_however_long_it_is():
    data = shown_runs(profile(many_steps(3)), Strings(), limit=4)
    assert data["shown"] == [[1, 3]]


def test_steps_whose_spans_were_dropped_are_counted():
    made, run = many_steps(5)
    made.steps = 1000
    data = shown_runs(profile((made, run)), Strings())
    assert data["shown"] == [[5, 1000]]
    assert data["runs"][0]["number"] == 995


def test_tapes_share_the_bound():
    pairs = many_steps(100), many_steps(2, name="predict", first=1.0), many_steps(100, name="fit", first=2.0)
    assert shown_runs(profile(*pairs), Strings(), limit=1020)["shown"] == [[50, 100], [2, 2], [50, 100]]


def test_threads_and_runs_inside_runs_have_tracks_of_their_own():
    outer, inner, other = many_steps(1), many_steps(1, rows=2, name="inner", first=2e-6), many_steps(1, name="other")
    other[1].thread = "second"
    data = shown_runs(profile(outer, inner, other), strings := Strings())
    named = [(strings.texts[thread], level) for thread, level in data["tracks"]]
    assert {run["tape"]: named[run["track"]] for run in data["runs"]} == {
        0: ("MainThread", 0),
        1: ("MainThread", 1),
        2: ("second", 0),
    }


def test_the_graph_has_places():
    (outline,) = data_of(small())["outlines"]
    (a, b), (width, height, node_width, node_height) = outline["nodes"], outline["size"]
    assert (a[0], b[0], outline["edges"]) == ("a", NASTY, [[0, 1]])
    assert (a[1:3], b[1:3]) == (["Dense(5, 3)", ""], ["ReLU()", "CHCAT"])
    assert (a[6:], b[6:]) == ([1, 0], [0, 1])
    for node in (a, b):
        assert node_width / 2 <= node[4] <= width - node_width / 2
        assert node_height / 2 <= node[5] <= height - node_height / 2
    assert b[5] - a[5] > node_height
    assert len(outline["paths"][0]) >= 4


def test_memory_and_roofs_are_those_of_the_profile():
    found = small(workers=3, roofs=ROOFS)
    data = data_of(found)
    own = data["tapes"][0]
    memory = found.tapes[0].memory
    assert (own["memory"]["live"], own["memory"]["peak"]) == ([*memory.live], memory.peak_row)
    assert [block[1:] for block in own["memory"]["blocks"]] == [
        [b.offset, b.nbytes, b.first, b.last] for b in memory.blocks
    ]
    assert own["memory"]["held"] == [["values", "128 B"], ["parameters", "60 B"], ["gradients", "60 B"]]
    assert own["roofs"]["peaks"] == [["float32", 2e11], ["float64", 1e11]]  # of two workers: most measured below three
    assert own["roofs"]["levels"] == [["L1", 4e11], ["L2", 2e11], ["memory", 1.5e10]]


def test_findings_are_those_of_diagnose():
    found = profile(
        tape([row(0), row(1)], [1e-6, 1e-6], steps=1), tape([row(0), replace(row(1), kernel="")], [1e-6, 4e-3])
    )
    data = data_of(found)
    expected = found.diagnose()
    assert data["findings"]["title"] == expected.title
    shown = [(text, remedy, rows) for _, text, remedy, rows in data["findings"]["list"]]
    assert shown == [(f.text, f.remedy, [2 * t + number for t, number in f.rows]) for f in expected.findings]
    assert [3] in [rows for _, _, rows in shown]


def test_empty_profiles():
    data = data_of(Profile("profiling", "2026-01-02", {}, [], [], 0.0))
    assert (data["tapes"], data["runs"], len(data["scopes"])) == ([], [], 1)
    assert data["scopes"][0]["figures"] == {by: [] for by in tables.BY}
    assert data_of(profile(tape([], [])))["shown"] == [[0, 2]]


def test_an_unwritable_path_is_named(tmp_path):
    path = tmp_path / "none" / "page.html"
    with pytest.raises(OSError, match=r"page\.html"):
        small().to_html(path)


def test_a_profile_from_a_file_gives_the_same_page(tmp_path):
    found = small(workers=2, roofs=ROOFS)
    assert page(Profile.load(found.to_json(tmp_path / "p.json"))) == page(found)


def test_phases_have_the_colours_of_all_pictures():
    data = data_of(profile(tape([row(0), row(1, "loss"), row(2, "formula")], [1e-3, 2e-3, 1e-3])))
    assert data["phases"] == {phase: phase_colour(phase) for phase in ("forward", "loss", "formula")}
