"""Watch a call: how long it runs, how much memory it takes, whether it runs code."""

import contextlib
import ctypes
import functools
import gc
import signal
import sys
import threading
import tracemalloc
from pathlib import Path

BYTES_PER_BYTE, SPARE_BYTES = 10, 64 * 10**6
"""Loading a file may take this much memory for each of its bytes, and on top."""

CODE = {
    *("exec", "compile", "import", "pickle", "marshal", "code", "ctypes"),
    *("os", "subprocess", "socket", "shutil"),
}
"""Families of audit events of code that is run, or of files that are changed."""


class Hang(BaseException):
    """A call that takes too long; no ``except Exception`` catches it."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise :class:`Hang` in the main thread after that time, where a system can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def stop(number, frame):
        raise Hang(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Peak:
    """Bytes that a call took at its peak, beyond those there were before."""

    n_bytes = 0


@contextlib.contextmanager
def memory_asked():
    """Measure what Python and NumPy ask for, used or not."""
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.n_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@contextlib.contextmanager
def memory_used():
    """Measure by how much the process grows, which should do nothing else meanwhile.

    Torch's memory is counted as well. It is 0 where the system does not tell.
    """
    peak = Peak()
    before = _reset_resident()
    try:
        yield peak
    finally:
        if before is not None:
            peak.n_bytes = _status("VmHWM") - before


@functools.cache
def _freeze():
    """Leave what there is out of later collections, which then take no time."""
    gc.collect()
    gc.freeze()


def _reset_resident():
    """Forget the peak so far; return the bytes of memory, None where unknown.

    Free memory is given back to the system first. The C library keeps what is freed
    for the next requests, which would be served without the process growing; garbage
    that is freed later would hide as much of the growth.
    """
    _freeze()
    gc.collect()
    if sys.platform == "linux":
        # Only the GNU library keeps much, and only it has this function.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda n_bytes: None)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"the system does not tell {name}")


class Audit:
    """Note the events of code that runs; a hook stays as long as the process does."""

    def __init__(self):
        self.seen = None
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if self.seen is not None and event.split(".")[0] in CODE:
            self.seen.append(f"{event}{args!r:.80}")

    @contextlib.contextmanager
    def no_code(self):
        """Raise an error if the call ran code."""
        self.seen = []
        try:
            yield
        finally:
            seen, self.seen = self.seen, None
        assert not seen, f"code ran: {seen}"
