"""Part a data set into one to learn from and one to test on."""

import numpy as np


def train_test_split(
    X: np.ndarray, y: np.ndarray, test_fraction: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`X_train, X_test, y_train, y_test`: copies, shuffled by `seed`, the same for the same seed everywhere.

    X: (N, ...). y: (N, ...). The test part has round(N * test_fraction) samples, at least one, and so has the
    training part.
    Raises ValueError where X and y differ in length, the fraction is outside (0, 1), or there are fewer than two
    samples.

    >>> X_train, X_test, y_train, y_test = train_test_split(np.zeros((10, 3)), np.arange(10))
    >>> X_train.shape, X_test.shape
    ((8, 3), (2, 3))
    """
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim == 0 or y.ndim == 0 or len(X) != len(y):
        raise ValueError(
            f"train_test_split: X and y need one entry per sample; received shapes {X.shape} and {y.shape}"
        )
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"train_test_split: test_fraction must lie between 0 and 1; received {test_fraction}")
    samples = len(X)
    if samples < 2:
        raise ValueError(f"train_test_split: two parts need at least 2 samples; received {samples}")
    test_size = min(max(round(samples * test_fraction), 1), samples - 1)
    order = np.random.default_rng(seed).permutation(samples)
    test, train = order[:test_size], order[test_size:]
    return X[train], X[test], y[train], y[test]
