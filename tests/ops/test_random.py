"""Dropout: the generator's published words, masks that depend on nothing but their counter, one state effect per trace."""

import numpy as np
import pytest
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.errors import DTypeError, GraphError, ShapeError, StateError
from tapeprop.ir import Input, Parameter, Tensor, Trace, recording
from tapeprop.ops.op import record
from tapeprop.ops.random import GROUP, philox, scale, threshold, words


def dropout(x, seed=1, call=1, rate=0.5, site=0, shared=(), workers=1):
    """The op by its kernel."""
    attributes = {"rate": rate, "site": site, "shared_axes": shared}
    return run(lambda t, c: record("dropout", [t, c], attributes)[0], x, np.array([seed, call]), workers=workers)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_words_of_its_authors(counter, key, expected):
    """Known answers of philox4x32-10 from the Random123 library."""
    number = lambda text: [int(word, 16) for word in text.split()]  # noqa: E731
    assert [int(word) for word in philox([np.array(c) for c in number(counter)], tuple(number(key)))] == number(
        expected
    )


def test_words_lie_in_groups_of_64():
    seed, call, site = -(2**40) + 5, 2**35 + 9, 3
    found = words(seed, call, site, 200)
    assert found.shape == (200,)
    for element in (0, 15, 16, 63, 64, 199):
        group, inside = divmod(element, GROUP)
        block, word = group * 16 + inside % 16, inside // 16
        drawn = philox(
            [np.array(c) for c in (block, site << 8, call & 0xFFFFFFFF, call >> 32)],
            (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
        )
        assert found[element] == drawn[word]


def test_rates_become_thresholds_and_factors():
    assert [threshold(r) for r in (0.0, 0.25, 1.0)] == [0, 2**30, 2**32]
    assert [scale(r) for r in (0.0, 0.75, 1.0)] == [1, 4, 0]


@pytest.mark.parametrize("shared", [(), (1,), (2, 3), (0, 2), (0, 1, 2, 3)])
def test_the_mask_is_the_same_for_every_dtype_and_number_of_workers(shared):
    x = np.ones((3, 5, 7, 11))
    mask = dropout(x, shared=shared) != 0
    for workers in (1, 2, 3, 8):
        for dtype in ("float32", "float64"):
            found = dropout(x.astype(dtype), shared=shared, workers=workers)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, np.where(mask, 2.0, 0.0))


@pytest.mark.parametrize("shared", [(1,), (2, 3), (0, 2), (0, 1)])
def test_shared_axes_share_a_draw_and_others_do_not(shared):
    shape = (40, 30, 20, 10)
    mask = dropout(np.ones(shape, np.float32), shared=shared) / 2
    own = tuple(slice(0, 1) if axis in shared else slice(None) for axis in range(4))
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[own], shape))
    drawn = words(1, 1, 0, mask[own].size).reshape(mask[own].shape)
    np.testing.assert_array_equal(mask[own], drawn >= 2**31)


def test_long_tensors_cross_grains():
    for count in (4095, 4096, 4097, 70_001):
        mask = dropout(np.ones(count, np.float32), rate=0.25, workers=3) != 0
        np.testing.assert_array_equal(mask, words(1, 1, 0, count) >= 2**30)


def test_seed_call_and_site_each_change_the_mask():
    x = np.ones(4096)
    masks = [
        dropout(x, **{"seed": 1, "call": 1, "site": 0, **change}) != 0
        for change in (
            {},
            {"seed": 2},
            {"seed": 1 + 2**32},
            {"call": 2},
            {"call": 1 + 2**32},
            {"site": 1},
            {"seed": -1},
        )
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            # independent masks agree on half of 4096 elements, with a standard deviation of 32
            assert abs((a == b).sum() - 2048) < 5 * 32


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_met_and_the_mean_kept(rate):
    y = dropout(np.ones(400_000, np.float32), rate=rate)
    deviation = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 5 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    pairs = (y[1:] == 0) & (y[:-1] == 0)  # neighbours are independent
    assert abs(pairs.mean() - rate**2) < 5 * np.sqrt(rate**2 / y.size) * 2


def test_rate_one_drops_all():
    np.testing.assert_array_equal(dropout(np.ones((3, 4)), rate=1.0), np.zeros((3, 4)))


def test_nan_goes_through_where_it_is_dropped_too():
    assert np.isnan(dropout(np.full(100, np.nan))).all()


def test_the_gradient_has_the_mask_of_the_value():
    x, flow = np.random.default_rng(0).standard_normal((2, 300))
    attributes = {"rate": 0.3, "site": 2, "shared_axes": ()}
    counter = np.array([5, 6])
    found = gradient(lambda t, c: record("dropout", [t, c], attributes)[0], x, counter, flow=flow)[0]
    np.testing.assert_array_equal(found, dropout(flow, 5, 6, 0.3, 2))


def test_next_random_advances_the_call_only():
    found = run(lambda c: record("next_random", [c])[0], np.array([-7, 2**40]))
    np.testing.assert_array_equal(found, [-7, 2**40 + 1])


# ---- the public function


def state():
    return Parameter((2,), np.array([3, 0]), trainable=False, dtype="int64", name="random")


def leaf(*shape, dtype="float32"):
    return Tensor(shape, dtype, source=Input(0))


def test_a_trace_advances_its_state_once_and_numbers_its_sites():
    trace = Trace("float32", True, state())
    with recording(trace):
        first = ops.dropout(leaf(4, 3), 0.5)
        second = ops.dropout(first, 0.25, shared_axes=(-1,))
    (store,) = trace.stores
    assert store.target.source is trace.random
    assert store.value.producer.op.name == "next_random"
    for tensor, site, rate, axes in ((first, 0, 0.5, ()), (second, 1, 0.25, (1,))):
        assert tensor.producer.operands[1] is store.value
        assert tensor.producer.attributes == {"rate": rate, "site": site, "shared_axes": axes}


def test_nothing_is_drawn_outside_training_or_at_rate_zero():
    for training, rate in ((False, 0.5), (True, 0.0)):
        trace = Trace("float32", training, state())
        with recording(trace):
            x = leaf(4, 3)
            assert ops.dropout(x, rate) is x
        assert not trace.stores


def test_refusals():
    with recording(Trace("float32", True)), pytest.raises(StateError, match="keeps no random state"):
        ops.dropout(leaf(3), 0.5)
    with recording(Trace("float32", True, state())):
        for rate in (-0.1, 1.5, float("nan")):
            with pytest.raises(GraphError, match="rate from 0 to 1"):
                ops.dropout(leaf(3), rate)
        with pytest.raises(ShapeError, match="axes"):
            ops.dropout(leaf(3), 0.5, (1,))
        with pytest.raises(ShapeError, match="transpose"):
            ops.dropout(leaf(2, 2, 2, 2, 2, 2), 0.5, (0, 2, 4))
        with pytest.raises(DTypeError, match="int64"):
            ops.dropout(leaf(3, dtype="int64"), 0.5)
        with pytest.raises(DTypeError, match=r"int64 counter of shape \(2,\)"):
            record("dropout", [leaf(3), leaf(2)], {"rate": 0.5, "site": 0, "shared_axes": ()})
