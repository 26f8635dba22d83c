"""For tests that a busy machine must not fail: a limit for what hangs, waiting for what happens, calls counted in place of seconds."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

#: Nothing that a test waits for takes as long, even with a cold cache on a busy machine: it hangs.
HANG_SECONDS = 600.0


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Returns when `happened()` is true. AssertionError, which names `what`, after `HANG_SECONDS`."""
    end = time.monotonic() + HANG_SECONDS
    while not happened():
        assert time.monotonic() < end, f"not within {HANG_SECONDS:.0f} s: {what}"
        time.sleep(0.001)


def calls_of(action: Callable[[], object]) -> int:
    """The function calls, built-in ones included, that `action()` makes on this thread."""
    found = 0

    def count_call(frame, event, argument):
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


class WantedLock:
    """Stands in for a lock and tells when a thread finds it held: `wanted` is set then."""

    def __init__(self, lock: Any):
        self.lock, self.wanted = lock, threading.Event()

    def acquire(self) -> None:
        """Waits for the lock."""
        if not self.lock.acquire(blocking=False):
            self.wanted.set()
            self.lock.acquire()

    def release(self) -> None:
        """Gives the lock back."""
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
