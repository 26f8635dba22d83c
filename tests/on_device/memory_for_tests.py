"""Arrays and rows in the memory of a driver."""

import numpy as np

from tapeprop.ir.kernels import FIRST_FIELD


def on(driver, array):
    """Memory of the device with a copy of `array`."""
    allocation = driver.allocate(array.nbytes)
    driver.upload(allocation.address, array)
    return allocation


def row_of(driver, address, size):
    """A row on the device for a kernel of one array."""
    return on(driver, np.array([0] * FIRST_FIELD + [address, size]))


def read(driver, allocation, dtype):
    found = np.empty(allocation.nbytes // np.dtype(dtype).itemsize, dtype)
    driver.download(found, allocation.address)
    return found
