"""What an NVIDIA GPU is: kernels in numba.cuda, their machine code, and the driver that runs them.

`library` holds the only import of numba.cuda; `language` is what kernels are written in; `kernel` puts a body into a shim
that reads a tape row; `object_code` compiles it without a GPU; `driver` says what a device does, and `nvidia`, `simulated`
and `dry` do it: on a GPU, in Numba's simulator on the host, and not at all but for the record.
"""
