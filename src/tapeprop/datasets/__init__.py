"""Data to train on: digits that ship inside, and readers for the MNIST and CIFAR files that a user has.

Every loader gives `(X, y)`: images as (N, C, H, W) float32 in [0, 1] and labels as (N,) int64. With `as_images=False`
the images are (N, C * H * W); with `normalize=False` they are the file's own uint8 values. Nothing is downloaded.
"""

from tapeprop.datasets.cifar import cifar10, cifar100
from tapeprop.datasets.digits import digits
from tapeprop.datasets.mnist import mnist, read_idx
from tapeprop.datasets.split import train_test_split

__all__ = ["cifar10", "cifar100", "digits", "mnist", "read_idx", "train_test_split"]
