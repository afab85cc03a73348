"""Watch the memory of this process while something runs; for ``memory_map.py``."""

import threading
import time
from pathlib import Path


def anonymous_memory():
    """Memory that this process has for itself, in MiB; pages of files do not count."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")  # not Linux
    line = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 2**10


class Watch(threading.Thread):
    """Note (seconds, growth of the memory in MiB) ten times a second, in ``points``."""

    def __enter__(self):
        self.done, self.points = threading.Event(), []
        self.first, self.begin = anonymous_memory(), time.perf_counter()
        self.start()
        return self

    def run(self):
        while not self.done.wait(0.1):
            seconds = time.perf_counter() - self.begin
            self.points.append((seconds, anonymous_memory() - self.first))

    def __exit__(self, *exc_info):
        self.done.set()
        self.join()
