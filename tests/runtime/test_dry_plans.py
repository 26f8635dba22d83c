"""Plans for a GPU, checked without one: captured launches are the rows, in order, on the right memory (see dry_checker)."""

import numpy as np
import pytest
from dry_checker import check_captured
from dry_networks import NETWORKS, executables

import tapeprop as tp
from tapeprop.compiler import plan as planner
from tapeprop.compiler.encode import Extent
from tapeprop.compiler.plan import Place
from tapeprop.losses import CrossEntropy
from tapeprop.ops.op import Op
from tapeprop.optimizers import Adam
from tapeprop.targets.cuda.driver import use_driver
from tapeprop.targets.cuda.dry import DryDriver


@pytest.fixture
def driver():
    with use_driver(DryDriver()) as made:
        yield made


def captured(driver, executable):
    """The graphs of an executable, as the driver wrote them down, in the order of the rows."""
    return [driver.graphs[graph.number] for _, graph in sorted(executable._graphs.items())]


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_are_captured_as_they_stand(driver, name):
    make, shape = NETWORKS[name]
    graph = make().build(device="cuda", clip_norm=1.0)
    graph.set_optimizer(Adam())
    X, y = np.zeros(shape, np.float32), np.zeros(shape[0], np.int64)
    calls = {
        "forward": lambda: graph.forward(X, True),
        "backward": graph.backward,
        "update": graph.update,
        "train_step": lambda: graph.train_step(X, y, CrossEntropy()),
    }
    for kind, call in calls.items():  # each is looked at before an arena grows for the next one
        call()
        (executable,) = [found for found in executables(graph) if found.name == kind]
        assert check_captured(executable, captured(driver, executable)) == len(executable.tape.rows) > 3


def test_a_fit_that_accumulates_has_a_graph_for_the_front_and_one_for_the_rest(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    X, y = np.zeros((12, *shape[1:]), np.float32), np.zeros(12, np.int64)
    graph.set_optimizer(Adam())
    session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 4, accumulate=3)
    session.start_epoch(np.arange(12))
    session.run(3)
    (executable,) = [e for e in executables(graph) if e.name == "fit" and e._graphs]
    graphs = captured(driver, executable)
    assert len(graphs) == 2
    assert len(graphs[0]) == executable.rounds.rows
    assert check_captured(executable, graphs) == len(executable.tape.rows)
    launched = [record.number for record in driver.log if type(record).__name__ == "GraphLaunched"]
    first, rest = (graph.number for _, graph in sorted(executable._graphs.items()))
    assert launched[-4:] == [first, first, first, rest]


def test_a_row_bound_to_a_wrong_place_is_found(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    graph.train_step(np.zeros(shape, np.float32), np.zeros(shape[0], np.int64), CrossEntropy())
    (executable,) = executables(graph)
    graphs = captured(driver, executable)
    with pytest.raises(AssertionError, match="launches for"):
        check_captured(executable, [graphs[0][:-1]])
    swapped = [graphs[0][1], graphs[0][0], *graphs[0][2:]]
    with pytest.raises(AssertionError, match="row 0"):
        check_captured(executable, [swapped])
    executable._flat[executable._row_bytes // 8 * 3 + 4] += 64
    driver.upload(executable._rows.address, executable._flat)
    with pytest.raises(AssertionError, match=r"row 3.*a word is"):
        check_captured(executable, graphs)


# ---- plans that are wrong: what the checker asks for can be missing


def _train_step(driver, name):
    """(executable, its graphs) of a step without clipping: all that the optimizer reads of other spans are leaves."""
    make, shape = NETWORKS[name]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    graph.train_step(np.zeros(shape, np.float32), np.zeros(shape[0], np.int64), CrossEntropy())
    (executable,) = executables(graph)
    return executable, captured(driver, executable)


@pytest.mark.parametrize(
    ("place", "told"),
    [(0, "reads a leaf that rows {.*} have overwritten"), (-1, "writes a gradient that rows .* have read")],
)
def test_an_optimizer_that_comes_too_early_is_found(driver, monkeypatch, place, told):
    """Before the forward pass reads the weights; before the last gradient is there."""

    def too_early(*arguments, **options):
        found = planner.plan(*arguments, **options)
        others, update = ([step for step in found.steps if (step.span == "update") is late] for late in (False, True))
        found.steps[:] = [*others[:place], *update, *others[place:]]
        return found

    monkeypatch.setattr("tapeprop.runtime.executable.plan", too_early)
    with pytest.raises(AssertionError, match=told):
        check_captured(*_train_step(driver, "digits"))


def test_a_result_over_an_operand_that_is_still_read_is_found(driver, monkeypatch):
    """As a planner would lay it out that lets every op compute in place."""
    with monkeypatch.context() as changed:
        changed.setattr(Op, "inplace_pairs", lambda op, call: [(0, k) for k in range(len(call.operands))])
        found = _train_step(driver, "digits")
    with pytest.raises(AssertionError, match="result 0 lies over operand 0, which it must not"):
        check_captured(*found)


def test_a_result_over_a_part_of_an_operand_is_found(driver):
    executable, graphs = _train_step(driver, "branches")
    row = next(row for row in executable.tape.rows if row.step.instruction.op.name == "elementwise")
    (written,) = row.writes
    assert written in row.reads
    row.writes = (Extent(Place(written.place.buffer, written.place.offset + 64), written.nbytes),)
    with pytest.raises(AssertionError, match="lies over a part of operand"):
        check_captured(executable, graphs)


def test_one_plan_serves_many_steps_and_uploads_only_the_batch(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros(shape, np.float32), np.zeros(shape[0], np.int64)
    for _ in range(2):
        graph.train_step(X, y, CrossEntropy())
    before = len(driver.log)
    graph.train_step(X, y, CrossEntropy())
    kinds = [type(record).__name__ for record in driver.log[before:]]
    assert kinds == ["Uploaded", "Uploaded", "GraphLaunched", "Downloaded", "Downloaded"]
    sizes = [record.nbytes for record in driver.log[before:] if hasattr(record, "nbytes")]
    assert sizes == [X.nbytes, y.nbytes, 8, 4]  # the status word, the loss


def test_a_fit_uploads_its_data_once(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros((40, *shape[1:]), np.float32), np.zeros(40, np.int64)
    session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 4)
    uploads = [record.nbytes for record in driver.log if type(record).__name__ == "Uploaded"]
    assert uploads.count(X.nbytes) == 1
    session.start_epoch(np.arange(40))
    session.run(4)
    before = len(driver.log)
    session.run(4)
    records = driver.log[before:]
    assert [type(r).__name__ for r in records].count("GraphLaunched") == 4
    assert not [r for r in records if type(r).__name__ == "Uploaded"]


def test_a_data_set_without_room_on_the_device_is_read_over_the_bus():
    with use_driver(DryDriver(capacity=900_000)) as driver:
        make, shape = NETWORKS["digits"]
        graph = make().build(device="cuda")
        graph.set_optimizer(Adam())
        X, y = np.zeros((4000, *shape[1:]), np.float32), np.zeros(4000, np.int64)
        session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 2)
        assert [type(held).__name__ for held in session.held] == ["PinnedInput", "DeviceInput"]
        session.start_epoch(np.arange(4000))
        assert session.run(2) == 2
        assert driver.used < 900_000


def test_a_plan_without_room_says_what_would_fit():
    with use_driver(DryDriver(capacity=600_000)):
        make, _shape = NETWORKS["digits"]
        graph = make().build(device="cuda")
        graph.set_optimizer(Adam())
        with pytest.raises(tp.errors.DeviceMemoryError, match="largest batch that fits is") as told:
            graph.train_step(np.zeros((500, 1, 8, 8), np.float32), np.zeros(500, np.int64), CrossEntropy())
        largest = int(str(told.value).rpartition(" ")[2])
        assert 1 <= largest < 500
        graph.train_step(np.zeros((largest, 1, 8, 8), np.float32), np.zeros(largest, np.int64), CrossEntropy())


def test_a_plan_without_room_gives_back_what_it_had(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    small = (np.zeros(shape, np.float32), np.zeros(shape[0], np.int64))
    graph.train_step(*small, CrossEntropy())
    used = driver.used
    driver._capacity = used + 100_000
    for call in (
        lambda x: graph.train_step(x, np.zeros(len(x), np.int64), CrossEntropy()),
        graph.forward,
        graph.predict,
    ):
        with pytest.raises(tp.errors.DeviceMemoryError, match=r"needs [\d,]+ bytes for values; .*fits"):
            call(np.zeros((2000, 1, 8, 8), np.float32))
        assert driver.used <= used
    graph.train_step(*small, CrossEntropy())


def test_a_fit_without_room_says_about_which_batch_fits(driver):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    driver._capacity = 3_000_000
    X, y = np.zeros((512, *shape[1:]), np.float32), np.zeros(512, np.int64)
    with pytest.raises(tp.errors.DeviceMemoryError, match=r"plan of 'fit' .* a batch of about \d+ fits"):
        graph.fit(X, y, loss=CrossEntropy(), batch_size=512, verbose=0)


def test_a_lost_device_leaves_what_the_host_last_saw(driver, monkeypatch):
    make, shape = NETWORKS["digits"]
    graph = make().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros(shape, np.float32), np.zeros(shape[0], np.int64)
    graph.train_step(X, y, CrossEntropy())
    seen = graph.state_dict()
    graph.train_step(X, y, CrossEntropy())

    def lost(*_):
        raise tp.errors.DeviceError("the device was lost")

    for name in ("upload", "download", "copy", "launch"):
        monkeypatch.setattr(driver, name, lost)
    for call in (lambda: graph.train_step(X, y, CrossEntropy()), graph.state_dict, lambda: graph.forward(X)):
        with pytest.raises(tp.errors.DeviceError, match="lost"):
            call()
    with pytest.warns(RuntimeWarning, match="those that the host last saw"):
        graph.to("cpu")
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, seen[name])
    assert np.isfinite(graph.train_step(X, y, CrossEntropy()))
