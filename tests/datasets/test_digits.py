"""The digits that ship inside, and the split."""

import numpy as np
import pytest

from tapeprop.datasets import digits, train_test_split

CLASS_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_shapes_types_and_range() -> None:
    X, y = digits()
    assert X.shape == (1797, 1, 8, 8)
    assert X.dtype == np.float32
    assert (X.min(), X.max()) == (0.0, 1.0)
    assert y.shape == (1797,)
    assert y.dtype == np.int64


def test_class_counts() -> None:
    _, y = digits()
    assert np.bincount(y).tolist() == CLASS_COUNTS


def test_flat_and_raw_are_the_same_pixels() -> None:
    images, _ = digits()
    flat, _ = digits(as_images=False)
    raw, _ = digits(normalize=False)
    assert flat.shape == (1797, 64)
    assert raw.dtype == np.uint8
    assert (raw.min(), raw.max()) == (0, 16)
    np.testing.assert_array_equal(flat.reshape(images.shape), images)
    np.testing.assert_array_equal(raw * np.float32(1 / 16), images)


def test_every_call_gives_arrays_of_its_own() -> None:
    for form in ({}, {"normalize": False}):
        X, y = digits(**form)
        X[:], y[:] = 0, 0
        again, labels = digits(**form)
        assert again.any()
        assert labels.any()


def test_equals_the_copy_it_was_taken_from() -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    X, y = digits(normalize=False)
    np.testing.assert_array_equal(X[:, 0], source.images)
    np.testing.assert_array_equal(y, source.target)


def test_split_is_seeded_and_complete() -> None:
    X, y = digits()
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_fraction=0.2, seed=3)
    assert (len(X_train), len(X_test)) == (len(y_train), len(y_test)) == (1438, 359)
    rows = np.concatenate([X_train, X_test]).reshape(1797, 64)
    together = np.column_stack([rows, np.concatenate([y_train, y_test])])
    original = np.column_stack([X.reshape(1797, 64), y])
    np.testing.assert_array_equal(np.sort(together.view("V260"), axis=0), np.sort(original.view("V260"), axis=0))

    again = train_test_split(X, y, test_fraction=0.2, seed=3)
    other = train_test_split(X, y, test_fraction=0.2, seed=4)
    np.testing.assert_array_equal(again[3], y_test)
    assert not np.array_equal(other[3], y_test)


def test_split_gives_copies() -> None:
    X, y = np.arange(10.0), np.arange(10)
    for part in train_test_split(X, y):
        part[:] = -1
    np.testing.assert_array_equal(X, np.arange(10.0))
    np.testing.assert_array_equal(y, np.arange(10))


@pytest.mark.parametrize(("fraction", "test_size"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_neither_part_is_empty(fraction: float, test_size: int) -> None:
    _, X_test, y_train, _ = train_test_split(np.arange(4), np.arange(4), test_fraction=fraction)
    assert (len(X_test), len(y_train)) == (test_size, 4 - test_size)


@pytest.mark.parametrize(
    ("X", "y", "fraction", "named"),
    [
        (np.zeros(3), np.zeros(4), 0.2, r"\(3,\) and \(4,\)"),
        (np.zeros(()), np.zeros(()), 0.2, r"\(\) and \(\)"),
        (np.zeros(3), np.zeros(3), 1.0, "received 1.0"),
        (np.zeros(3), np.zeros(3), 0.0, "received 0.0"),
        (np.zeros(3), np.zeros(3), float("nan"), "received nan"),
        (np.zeros(1), np.zeros(1), 0.5, "received 1"),
    ],
)
def test_split_refuses(X: np.ndarray, y: np.ndarray, fraction: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        train_test_split(X, y, test_fraction=fraction)
