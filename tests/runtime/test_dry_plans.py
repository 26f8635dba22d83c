"""Plans for a GPU, checked without one: captured launches are the rows, in order, on the right memory (see dry_checker)."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from dry_checker import check_captured
from dry_networks import NETWORKS, branches, executables
from targets.fake_cuda import FakeCuda

import tapeprop as tp
from tapeprop.compiler import plan as planner
from tapeprop.compiler.encode import Extent
from tapeprop.compiler.plan import Place
from tapeprop.layers import Dense, Identity
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.ops.op import Op
from tapeprop.optimizers import Adam
from tapeprop.runtime.memory import memory_at
from tapeprop.targets.cuda.driver import use_driver
from tapeprop.targets.cuda.dry import DryDriver
from tapeprop.targets.cuda.nvidia import NvidiaDriver


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


def trained(graph):
    """A step's arrays for the digits, of which the graph has taken one."""
    _, shape = NETWORKS["digits"]
    graph.set_optimizer(Adam())
    X, y = np.zeros(shape, np.float32), np.zeros(shape[0], np.int64)
    graph.train_step(X, y, CrossEntropy())
    return X, y


def there(driver, array):
    """The array on the device, as another library has it."""
    memory = driver.allocate(array.nbytes)
    driver.upload(memory.address, array)
    return driver.export(memory, array.shape, array.dtype.name)


def test_a_plan_without_room_keeps_no_constants_of_its_attempts(driver):
    node = tp.LayerNode(Dense(5, 4), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build(device="cuda", clip_norm=1.0)
    graph.set_optimizer(Adam())
    driver._capacity = 150_000
    for _ in range(2):
        with pytest.raises(tp.errors.DeviceMemoryError, match="largest batch"):
            graph.train_step(np.zeros((4000, 5), np.float32), np.zeros((4000, 4), np.float32), MSE())
    names = [name for name in executables(graph)[0]._fixed if name.startswith("constant")]
    assert len(names) == 1


def test_a_capture_without_room_is_tried_again(driver, monkeypatch):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    end = driver._end_capture

    def full(keep):
        end(False)
        raise tp.errors.DeviceMemoryError("needed room for a graph")

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_end_capture", full)
        X, y = trained(graph)
    assert driver.capture_failure is None
    graph.train_step(X, y, CrossEntropy())
    assert type(driver.log[-3]).__name__ == "GraphLaunched"


def test_what_an_interrupted_run_has_reported_is_not_told_of_the_next(driver, monkeypatch):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    X, y = trained(graph)
    (executable,) = executables(graph)

    def interrupted(*_):
        driver.upload(executable._control.address, np.array([1 << 32 | 1]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(driver, "download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            graph.train_step(X, y, CrossEntropy())
    graph.train_step(X, y, CrossEntropy())


def test_a_fit_leaves_nothing_of_its_data_on_the_device(driver):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    X, _ = trained(graph)
    sizes = []
    for samples in (100, 10_000):
        data = np.zeros((samples, *X.shape[1:]), np.float32), np.zeros(samples, np.int64)
        graph.fit(*data, loss=CrossEntropy(), batch_size=4, verbose=0)
        gc.collect()
        sizes.append(driver.used)
    assert sizes[1] <= sizes[0]


def test_a_fit_without_room_leaves_nothing_either(driver):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    X, _ = trained(graph)
    before = driver.used
    driver._capacity = before + 300_000
    with pytest.raises(tp.errors.DeviceMemoryError):
        graph.fit(np.zeros((500, *X.shape[1:]), np.float32), np.zeros(500, np.int64), loss=CrossEntropy(), batch_size=500,
                  verbose=0)  # fmt: skip
    gc.collect()
    assert driver.used <= before


def test_data_that_fits_in_no_piece_of_what_is_free_is_read_over_the_bus(driver, monkeypatch):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros((40, 1, 8, 8), np.float32), np.zeros(40, np.int64)
    allocate = driver.allocate

    def fragmented(nbytes):
        if nbytes == X.nbytes:
            raise tp.errors.DeviceMemoryError("in pieces")
        return allocate(nbytes)

    monkeypatch.setattr(driver, "allocate", fragmented)
    session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 4)
    assert [type(held).__name__ for held in session.held] == ["PinnedInput", "DeviceInput"]


def test_arrays_of_a_caller_are_let_go(driver):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64)
    calls = {
        "train_step": lambda x: graph.train_step(x, y, CrossEntropy()),
        "predict": graph.predict,
        "forward": lambda x: graph.forward(x, True),
        "profile": lambda x: graph.profile(x, y, CrossEntropy(), repeats=1),
    }
    for name, call in calls.items():
        given = there(driver, X)
        alive = weakref.ref(given)
        call(given)
        del given
        gc.collect()
        assert alive() is None, name
    d_out = there(driver, graph.forward(X))
    alive = weakref.ref(d_out)
    graph.backward(d_out)
    del d_out
    gc.collect()
    assert alive() is None
    graph.backward(there(driver, np.ones((4, 10), np.float32)))  # the input's copy is there still


def test_a_watched_gradient_is_that_which_the_device_gave(driver):
    node = tp.LayerNode(Identity(), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 3), device="cuda")
    graph.watch(node)
    graph.forward(np.ones((2, 3)))
    d_out = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph.backward(there(driver, d_out))
    np.testing.assert_array_equal(graph.gradient(node), d_out)


@pytest.mark.parametrize("what", ["forward", "backward", "predict"])
def test_results_do_not_follow_what_a_caller_does_to_arrays_afterwards(what):
    """Also where nothing is computed: the device is done with them when a call returns."""
    with use_driver(NvidiaDriver(FakeCuda())) as late:
        node = tp.LayerNode(Identity(), name="only")
        graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 3), device="cuda")
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        given = there(late, values)
        if what == "predict":
            (found,) = graph.infer([graph.on_device(given, ("float32",), "X")])
        elif what == "backward":
            graph.forward(values)
            found = graph.backward(given)
        else:
            found = graph.forward(given)
        memory_at(given.address, given.nbytes)[:] = 0  # at once, as on a stream of its owner's
        np.testing.assert_array_equal(np.asarray(found), values)


def lose(driver, monkeypatch, why="the device was lost (a kernel)"):
    def lost(*_):
        raise tp.errors.DeviceError(f"{why}; what to do about it")

    for name in ("upload", "download", "copy", "launch"):
        monkeypatch.setattr(driver, name, lost)


def behind(graph):
    """The buffers of which the device has something newer."""
    return [b.name for b in graph._buffers() if b.role != "gradients" and b.mirror is not None and b.mirror.ahead]


def test_what_a_lost_device_leaves_belongs_together(driver):
    graph = branches().build(device="cuda")
    graph.set_optimizer(Adam())
    X, y = np.zeros((8, 3, 6, 6), np.float32), np.zeros(8, np.int64)
    graph.train_step(X, y, CrossEntropy())
    assert len(behind(graph)) > 4  # weights, statistics, moments, counters
    session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 4)
    for _ in range(2):
        session.start_epoch(np.arange(8))
        assert not behind(graph)
        session.run(2)
        assert behind(graph)
    session.close()
    assert not behind(graph)
    graph.fit(X, y, loss=CrossEntropy(), batch_size=4, verbose=0)
    assert not behind(graph)


def test_a_session_ends_where_the_device_is_lost(driver, monkeypatch):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    X, y = trained(graph)
    session = graph.fit_session([X], [y], [CrossEntropy()], [1.0], 4)
    session.start_epoch(np.arange(4))
    session.run(1)
    lose(driver, monkeypatch)
    session.close()
    assert len(executables(graph)) == 1


def test_gradients_that_were_lost_wait_no_longer(driver, monkeypatch):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    X, _ = trained(graph)
    weight = next(p for _, p in graph.named_parameters() if p.trainable)
    weight.grad[...] = 1
    graph.forward(X, True)
    graph.backward()
    lose(driver, monkeypatch, "the GPU was opened before os.fork()")
    with pytest.warns(
        RuntimeWarning, match=r"^the GPU was opened before os.fork\(\): weights and .* that the host last saw"
    ):
        graph.to("cpu")
    assert not weight.storage.pending
    assert not weight.grad.any()
    before = graph.state_dict()
    graph.update()
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_copy_is_built_where_its_maker_says(driver):
    graph = NETWORKS["digits"][0]().build(device="cuda")
    for copied in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert copied.device == "cpu"
        assert not copied.built_


def test_a_cpu_graph_refuses_a_tensor_there_that_requires_a_gradient():
    class Tensor:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    graph = NETWORKS["digits"][0]().build(device="cpu")
    with pytest.raises(tp.errors.DeviceError, match="lies on a CUDA device"):
        graph.forward(Tensor())


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
