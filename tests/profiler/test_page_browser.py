"""The page in a real browser: it draws, tells, searches, sorts, and shows hostile names as text."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from profiler.browser import emulate, headless, settle
from profiler.profiles import NASTY, ROOFS, profile, row, small, tape

from tapeprop.profiler import tables
from tapeprop.profiler.page import write
from tapeprop.profiler.profile import NodeInfo, Outline, Profile

VIEWS = ("timeline", "memory", "roofline")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless(tmp_path_factory.mktemp("chromium")) as found:
        yield found


class Page:
    """A page that is open in the browser."""

    def __init__(self, browser, path, **emulated):
        self.browser = browser
        emulate(browser, **emulated)
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())
        settle(browser)

    def run(self, script, *arguments):
        found = self.browser.execute_script(script, *arguments)
        settle(self.browser)
        return found

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def count(self, selector):
        return len(self.texts(selector))

    def open(self, tab):
        self.run("document.getElementById(`tab-${arguments[0]}`).click()", tab)

    def point_at(self, x, y, click=False):
        from selenium.webdriver.common.action_chains import ActionBuilder

        actions = ActionBuilder(self.browser)
        actions.pointer_action.move_to_location(round(x), round(y))
        if click:
            actions.pointer_action.pointer_down().pointer_up()
        actions.perform()
        settle(self.browser)

    def point_at_row(self, view, number, click=False):
        self.point_at(*self.run("return tapeprop.places[arguments[0]](arguments[1])", view, number), click)

    def point_at_element(self, selector, index=0, click=False):
        script = """const box = document.querySelectorAll(arguments[0])[arguments[1]].getBoundingClientRect();
                    return [box.x + box.width / 2, box.y + box.height / 2]"""
        self.point_at(*self.run(script, selector, index), click)

    def press(self, *keys):
        self.browser.switch_to.active_element.send_keys(*keys)
        settle(self.browser)

    def choose(self, selector, value):
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true}))",
            selector,
            value,
        )

    def painted(self, view):
        """How many different colours a canvas has, and the share of its pixels that have any."""
        return self.run(
            """const canvas = document.getElementById(arguments[0]);
               const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
               copy.drawImage(canvas, 0, 0);
               const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
               const colours = new Set(); let some = 0;
               for (let i = 0; i < data.length; i += 4) {
                 if (data[i + 3]) { some++; colours.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]); }
               }
               return [colours.size, some / (data.length / 4)]""",
            view,
        )

    def view(self):
        return self.run("return [tapeprop.view.from, tapeprop.view.to]")

    def focused_rows(self):
        return self.run(
            "return (tapeprop.state.hover ?? tapeprop.state.pinned)?.rows ?? []",
        )

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self):
        """The addresses that the page asked for, itself apart."""
        logged = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in logged if m["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a profile; afterwards nothing may have been complained of, nor asked from a network."""
    opened = []

    def open_page(found, **emulated):
        opened.append(Page(browser, write(found, tmp_path / "page.html"), **emulated))
        return opened[-1]

    yield open_page
    for page in opened[-1:]:
        assert page.complaints() == []
        assert page.requests() == []


def several():
    """Two tapes of one graph."""
    rows = [row(0), row(1, op="relu", node="b", layer="b.1", flops=12, traffic=96, after=(0,))]
    more = [*rows, row(2, "backward", "matmul_grad", "a", after=(0, 1))]
    outline = Outline((NodeInfo("a", "Dense(5, 3)"), NodeInfo("b", "ReLU()")), (("a", "b"),), ("a",), ("b",))
    fit = tape(more, [1.1e-3, 2e-3, 0.9e-3], steps=5, workers=2, name="fit", outline=0)
    predict = tape(rows, [1e-4, 2e-4], name="predict", outline=0, first=0.1)
    return profile(fit, predict, what="profiling", outlines=(outline,), roofs=ROOFS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1400, 900), (900, 700), (400, 700)])
def test_every_view_draws(show, scheme, size):
    page = show(small(workers=2, roofs=ROOFS), width=size[0], height=size[1], scheme=scheme)
    for view in VIEWS:
        if view != "timeline":
            page.open(view)
        colours, part = page.painted(view)
        assert colours > 3, view
        assert part > 0.01, view
    assert page.count("#table tbody tr") == 3
    assert page.count("#graph-scroll .node") == 2
    assert page.count("#graph-scroll .edge") == 1
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_head_tells_what_ran(show):
    found = small(workers=2, roofs=ROOFS)
    found.dropped, found.compile_seconds = 1234, 0.25
    page = show(found)
    assert page.text("h1").startswith("tapeprop profile: train_step")
    facts = page.text("#facts").replace("\n", " ")
    for part in (
        "steps 2",
        "time per step 4 ms",
        "workers 2",
        "compiling 250 ms",
        "dropped 1,234 spans of earlier runs",
    ):
        assert part in facts
    assert page.text("#shown") == "all 2 steps"
    page.run("document.getElementById('more').open = true")
    assert "a processor" in page.text("#machine")
    assert "6" in page.text("#machine")


def test_the_page_says_how_many_steps_it_shows(show):
    found = small()
    found.tapes[0].steps = 1000
    assert show(found).text("#shown") == "the last 2 of 1,000 steps"


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("view", VIEWS)
def test_hover_tells_of_the_right_row(show, view, number):
    found = small(workers=2, roofs=ROOFS)
    page = show(found)
    if view != "timeline":
        page.open(view)
    page.point_at_row(view, number)
    info = found.tapes[0].rows[number]
    tip = page.text("#tip")
    assert tip.startswith(f"{number} {info.op}")
    assert page.focused_rows() == [number]
    if view == "memory":
        assert f"{found.tapes[0].memory.live[number]} B live" in tip
        return
    figure = next(f for f in tables.figures(found) if f.rows == ((0, number),))
    for part in (
        info.phase,
        *tables.cells(figure)[:2],
        "float32 (4,5), float32 (5,3)",
        "tapeprop.ops.matmul.cpu:kernel",
    ):
        assert part in tip
    if view == "timeline":
        for part in ("this call", "median of calls", "wait behind it", ["1.1 ms", "2 ms", "900 us"][number]):
            assert part in tip


def test_the_rate_of_a_call_is_that_of_its_slowest_worker(show):
    made, run = tape([row(0, flops=4_000_000)], [1e-3], steps=1, workers=2)
    run.end[0, 1, 0] = run.begin[0, 1, 0] + 4e-3
    page = show(profile((made, run)))
    page.point_at(*page.run("const [x, y] = tapeprop.places.timeline(0); return [x - 5, y]"))
    tip = page.text("#tip")
    assert "this call\n1 ms at 0 ns" in tip
    assert "slowest worker\n4 ms" in tip
    assert "rate of the call\n1 GFLOP/s" in tip
    assert "wait behind it\n3 ms" in tip


def test_waits_are_told(show):
    made, run = tape([row(0), row(1)], [1e-3, 1e-3], steps=1, wait=1e-3)
    page = show(profile((made, run)))
    x, y = page.run("return tapeprop.places.timeline(0)")
    after, _ = page.run("return tapeprop.places.timeline(1)")
    page.point_at((x + after) / 2, y)
    tip = page.text("#tip")
    assert tip.startswith("0 matmul")
    assert "waiting behind it" in tip
    assert "wait behind it\n1 ms" in tip


def test_a_click_pins_and_escape_lets_go(show):
    page = show(small(roofs=ROOFS))
    page.point_at_row("timeline", 1, click=True)
    page.point_at(700, 20)
    assert page.focused_rows() == [1]
    details = page.text("#details")
    assert details.startswith("1 relu")
    assert NASTY.strip() in details
    assert page.run("return document.querySelector('#table tr.on').figure.rows") == [1]
    assert [
        name == NASTY for name in page.run("return [...document.querySelectorAll('.node.on')].map(e => e.node.name)")
    ] == [True]
    from selenium.webdriver.common.keys import Keys

    page.press(Keys.ESCAPE)
    assert page.focused_rows() == []
    assert page.text("#details").startswith("Click")


def test_zoom_and_pan(show):
    page = show(several())
    start, stop = page.view()
    page.run("document.getElementById('timeline').focus()")
    page.press("w")
    closer = page.view()
    assert start < closer[0] < closer[1] < stop
    page.press("d")
    assert page.view()[0] > closer[0]
    page.press("a", "s", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-")
    widest = page.view()
    assert widest[0] <= 0
    page.press("+")
    assert page.view()[1] - page.view()[0] < widest[1] - widest[0]
    x, y = page.run("return tapeprop.places.timeline(2)")
    before = page.view()
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = page.run("return document.getElementById('timeline')")
    ActionChains(page.browser).drag_and_drop_by_offset(canvas, 120, 0).perform()
    settle(page.browser)
    assert page.view()[0] < before[0]
    assert page.view()[1] - page.view()[0] == pytest.approx(before[1] - before[0])
    assert page.run("return tapeprop.state.pinned") is None
    # on a busy machine two clicks may be too far apart for a double one
    page.run("arguments[0].dispatchEvent(new MouseEvent('dblclick'))", canvas)
    everything = page.view()
    assert everything[0] < 0
    assert everything[1] > page.run("return tapeprop.model.extent")
    page.run(
        "document.getElementById('timeline').dispatchEvent(new WheelEvent('wheel',"
        "{deltaY: -200, clientX: arguments[0], clientY: arguments[1], cancelable: true}))",
        x,
        y,
    )
    assert page.view()[1] - page.view()[0] < everything[1] - everything[0]


def test_arrows_go_from_box_to_box(show):
    from selenium.webdriver.common.keys import Keys

    page = show(small())
    page.run("document.getElementById('timeline').focus()")
    seen = []
    for _ in range(3):
        page.press(Keys.ARROW_RIGHT)
        seen += page.focused_rows()
    assert seen == [1, 2, 2]  # from the middle of what is shown to the end
    page.press(Keys.ARROW_LEFT)
    assert page.focused_rows() == [1]
    page.press(*[Keys.ARROW_LEFT] * 6)
    assert page.focused_rows() == [0]
    page.press("f")
    (first, last), begin = page.view(), 0.0
    assert first < begin < last < 1.1e-3 * 6


def test_search_finds_in_all_views(show):
    found = several()
    page = show(found)
    page.choose("#query", "RELU")
    seconds = next(
        f for f in tables.figures(replace(found, tapes=found.tapes[:1], runs=found.runs[:1]), "op") if f.key == "relu"
    )
    assert page.text("#hits") == f"1 instruction, {tables.cells(seconds)[0]} ({tables.cells(seconds)[1]})"
    assert page.run("return document.querySelector('#table tr.hit').figure.rows") == [1]
    assert page.count("#table tr.miss") == 2
    assert page.run("return document.querySelector('.node.hit').node.name") == "b"
    page.run("document.getElementById('only-hits').click()")
    assert page.count("#table tbody tr") == 1
    page.run("document.getElementById('only-hits').click()")
    page.choose("#query", "^matmul(_grad)?$")
    assert page.text("#hits").startswith("0 instructions")
    page.run("document.getElementById('regex').click()")
    assert page.text("#hits").startswith("2 instructions")
    page.choose("#query", "(")
    assert page.text("#hits") == "not a regular expression"
    assert page.run("return tapeprop.state.hits") is None
    page.choose("#query", "cpu:KERNEL$")
    assert page.text("#hits").startswith("3 instructions")
    page.choose("#query", "")
    assert page.count("#table tr.miss, #table tr.hit") == 0


def test_what_is_not_found_fades(show):
    page = show(small(workers=2))
    before = page.painted("timeline")
    picture = "return document.getElementById('timeline').toDataURL()"
    shown = page.run(picture)
    page.choose("#query", "relu")
    assert page.run(picture) != shown
    page.choose("#query", "")
    assert page.run(picture) == shown
    assert page.painted("timeline") == before


@pytest.mark.parametrize("by", tables.BY)
def test_the_table_shows_the_figures_of_python(show, by):
    found = small(workers=2, roofs=ROOFS)
    page = show(found)
    page.choose("#by", by)
    shown = page.run(
        "return [...document.querySelectorAll('#table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    names = 4 if by == "instruction" else 1
    assert [tuple(line[names:]) for line in shown] == [tables.cells(f) for f in tables.figures(found, by)]
    if by != "instruction":
        assert [line[0] for line in shown] == [f.key for f in tables.figures(found, by)]


def test_the_table_sorts(show):
    page = show(small(workers=2, roofs=ROOFS))
    order = "return [...document.querySelectorAll('#table tbody tr')].map(r => r.figure.rows[0])"
    assert page.run(order) == [1, 0, 2]
    for column, expected in (("time", [2, 0, 1]), ("row", [0, 1, 2]), ("op", [0, 2, 1]), ("roof", None)):
        page.run("document.querySelector(`th[data-column=${arguments[0]}] button`).click()", column)
        kind = page.run("return document.querySelector('th[aria-sort]').dataset.column")
        assert kind == column
        rows = page.run(order)
        if expected is None:
            values = page.run(
                "return [...document.querySelectorAll('#table tbody tr')].map(r => r.figure.numbers.roof)"
            )
            assert values == sorted(values, reverse=True)
        else:
            assert rows == expected
    page.run("document.querySelector('th[data-column=row] button').click()")
    page.run("document.querySelector('th[data-column=row] button').click()")
    assert page.run(order) == [2, 1, 0]
    assert page.run("return document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"


def test_long_tables_show_more_on_demand(show):
    page = show(profile(tape([row(i) for i in range(1000)], [1e-6] * 1000)))
    assert page.count("#table tbody tr") == 401
    assert page.text("#table-more") == "Show 600 more"
    page.run("document.querySelector('#table-more button').click()")
    assert page.count("#table tbody tr") == 1000


def test_a_line_of_the_table_lights_up_everywhere(show):
    page = show(several())
    page.point_at_element("#table tbody tr", 0)
    assert page.focused_rows() == [1]
    assert page.run("return [...document.querySelectorAll('.node.on')].map(e => e.node.name)") == ["b"]
    page.choose("#by", "op")
    page.point_at_element("#table tbody tr", 0, click=True)
    assert page.text("#details").startswith("op relu")


def test_a_node_lights_up_its_instructions(show):
    page = show(several())
    page.point_at_element("#graph-scroll .node", 0)
    assert page.focused_rows() == [0, 2]
    assert page.run("return [...document.querySelectorAll('#table tr.on')].map(r => r.figure.rows[0])") == [0, 2]
    assert "Dense(5, 3)" in page.text("#tip")
    page.point_at_element("#graph-scroll .node", 0, click=True)
    page.point_at(700, 20)
    assert page.focused_rows() == [0, 2]
    assert page.text("#details").startswith("node a")
    page.run("document.querySelectorAll('#graph-scroll .node')[1].focus()")
    page.press(" ")
    assert page.focused_rows() == [1]


def test_the_choice_of_the_tape(show):
    page = show(several())
    assert page.texts("#scope option") == ["fit(float32 (4,5))", "predict(float32 (4,5))", "all tapes"]
    assert page.count("#table tbody tr") == 3
    page.choose("#scope", "1")
    assert page.run("return [...document.querySelectorAll('#table tbody tr')].map(r => r.figure.rows[0])") == [4, 3]
    assert page.text("#shown") == "all 2 steps"
    page.point_at_row("timeline", 4)
    assert page.text("#tip").startswith("predict 1 relu")
    page.open("memory")
    assert page.text("#memory-note").startswith("predict: arena 128 B")
    page.open("table")
    page.choose("#scope", "2")
    assert page.count("#table tbody tr") == 5
    assert "fit 2" in page.text("#table")
    assert page.text("#table-note") == "5 instructions, time in all"


def test_one_tape_leaves_nothing_to_choose(show):
    assert page_hidden(show(small()), "#scope-label")


def page_hidden(page, selector):
    return page.run("return document.querySelector(arguments[0]).offsetParent === null", selector)


def test_findings_lead_to_their_instructions(show):
    rows = [row(0, flops=10**6), row(1, op="mine", node="b", flops=0)]
    rows[1] = replace(rows[1], kernel="")
    found = profile(tape(rows, [1e-5, 4e-3]))
    expected = found.diagnose()
    page = show(found)
    assert page.text("#tab-findings") == f"Findings ({len(expected)})"
    page.open("findings")
    assert page.text("#findings-note") == expected.title
    assert page.texts("#findings .remedy") == [finding.remedy for finding in expected.findings]
    page.run("document.querySelector('#findings button').click()")
    assert page.focused_rows() == [1]
    assert expected.findings[0].text in page.text("#details")
    page.run("document.querySelector('#findings button').click()")
    assert page.focused_rows() == []


def test_colours_follow_the_choice(show):
    page = show(several())
    op = page.texts("#legend .text")
    page.choose("#colour", "phase")
    assert (op, page.texts("#legend .text")) == (["relu", "matmul", "matmul_grad"], ["forward", "backward"])
    page.run("document.querySelectorAll('#legend button')[1].click()")
    assert page.text("#details").startswith("phase backward")


def test_hostile_names_are_text(show):
    names = [NASTY, "<img src=x onerror=alert(1)>", "\u202eabc", "ü" * 300, "{{data}}", "&lt;b&gt;", "a\x00b"]
    rows = [row(i, node=name, op=name, layer=name + ".0") for i, name in enumerate(names)]
    outline = Outline(tuple(NodeInfo(name, name) for name in names), tuple(pairwise(names)))
    page = show(profile(tape(rows, [1e-3] * len(rows), outline=0), what=NASTY, outlines=(outline,)))
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert NASTY in page.text("h1").replace("\n", "") or NASTY.strip() in page.text("h1")
    for by in ("op", "node", "layer"):
        page.choose("#by", by)
        page.choose("#colour", "op" if by == "layer" else by)
        shown = page.texts("#table td.left")
        assert sorted(shown) == sorted(name + (".0" if by == "layer" else "") for name in names)
    assert page.run("return [...document.querySelectorAll('.node')].map(e => e.node.name)") == names
    page.point_at_row("timeline", 0, click=True)
    assert NASTY.strip() in page.text("#details")
    page.choose("#query", "onerror")
    assert page.text("#hits").startswith("1 instruction,")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")


def test_an_empty_profile(show):
    page = show(Profile("profiling", "2026-01-02", {}, [], [], 0.0))
    assert page.text("#shown") == "no steps ran"
    assert page.count("#table tbody tr") == 0
    assert "No graph" in page.text("#graph-scroll")
    for view in (*VIEWS[1:], "findings"):
        page.open(view)
    assert page.text("#findings-note") == "nothing ran"
    page.choose("#query", "a")
    assert page.text("#hits").startswith("0 instructions")
    page.run("document.getElementById('timeline').focus()")
    page.press("w", "d", "f", "0")
    page.point_at_element("#timeline")


def test_one_row(show):
    page = show(profile(tape([row(0)], [1e-3], steps=1)))
    page.point_at_row("timeline", 0)
    assert page.text("#tip").startswith("0 matmul")
    for view in VIEWS[1:]:
        page.open(view)
        page.point_at_row(view, 0)
        assert page.text("#tip").startswith("0 matmul")
        assert page.painted(view)[0] > 3


def test_rows_of_no_time_and_workers_that_took_no_part(show):
    made, run = tape([row(0), row(1, op="nothing", flops=0, traffic=0), row(2)], [0.0, 0.0, 1e-3], workers=2)
    run.begin[:, 1, :2] = run.end[:, 1, :2] = np.nan
    page = show(profile((made, run), roofs=ROOFS))
    page.point_at_row("timeline", 2)
    assert page.text("#tip").startswith("2 matmul")
    page.open("roofline")
    assert page.text("#roofline-note") == "1 instruction; area by time; 2 without operations or bytes or time not shown"
    page.open("table")
    assert "0 ns" in page.text("#table")


def test_no_roofs_are_said_so(show):
    page = show(small())
    page.open("roofline")
    assert page.text("#roofline-note").endswith("no roofs were measured")
    assert page.painted("roofline")[0] > 3


def test_threads_and_runs_inside_runs_are_told_apart(show):
    outer = tape([row(0), row(1)], [1e-3, 1e-3])
    inner = tape([row(0, op="inside")], [1e-4], steps=1, name="inner", first=2e-4)
    other = tape([row(0, op="other")], [1e-3], name="other")
    other[1].thread = "second"
    page = show(profile(outer, inner, other))
    labels = page.run("return tapeprop.model.tracks.map(t => t.label)")
    assert labels == ["MainThread", "MainThread, inside a run", "second"]
    for number, op in ((2, "inside"), (3, "other"), (1, "matmul")):
        page.choose("#scope", "3")
        page.run("document.getElementById('zoom-all').click()")
        page.point_at_row("timeline", number)
        assert op in page.text("#tip").splitlines()[0]


def test_many_spans_are_drawn(show):
    rows = [row(i, op=f"op{i % 7}") for i in range(100)]
    page = show(profile(tape(rows, [1e-6 * (1 + i % 5) for i in range(100)], steps=300, workers=2, wait=1e-7)))
    page.run("document.getElementById('zoom-all').click()")
    assert page.painted("timeline")[1] > 0.5
    assert page.text("#shown") == "the last 250 of 300 steps"
    page.choose("#query", "op3")
    assert page.painted("timeline")[1] > 0.5


def test_tabs_by_keyboard(show):
    from selenium.webdriver.common.keys import Keys

    page = show(small())
    page.run("document.getElementById('tab-table').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert not page_hidden(page, "#memory-view")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert not page_hidden(page, "#table-view")
    page.run("document.querySelector('#table tbody tr').focus()")
    page.press(Keys.ENTER)
    assert page.text("#details").startswith("1 relu")
