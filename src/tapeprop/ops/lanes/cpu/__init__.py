"""CPU kernels of the batch-lane layout."""
