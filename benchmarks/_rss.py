"""Anonymous memory of this process."""

import ctypes
import gc
import threading


def anonymous():
    """Return RssAnon in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this needs Linux")


def peak_anonymous(function):
    """Run `function` and return the largest growth of anonymous memory, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there to be used again
    done = threading.Event()
    start = peak = anonymous()

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        function()
    finally:
        done.set()
        thread.join()
    return max(peak, anonymous()) - start
