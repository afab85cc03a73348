"""An embedder of paths that reads no file, and writes down what it embeds.

Run as a script, it is the process that ``test_write_shards.py`` kills: it forks a
writer whenever it reads a line, because a fork costs less than another import.
"""

import os
import sys
import time

import numpy as np

N_COLUMNS = 4


def embedding(name):
    """Return the embedding of a path such as "17.png"; names of "bad" have none."""
    number = int(name.split(".")[0])
    return np.array([number, number % 7, 1.0, 0.5], dtype=np.float32)


class FakeEmbedder:
    """Embeds paths in batches.

    Parameters
    ----------
    batch_size : int
        Images of a batch.
    log : path, default=None
        File to which the names of the images of every batch are appended.
    pause : float, default=0.0
        Seconds that a batch takes.
    """

    def __init__(self, batch_size=5, log=None, pause=0.0):
        self.batch_size, self.log, self.pause = batch_size, log, pause
        self.embedded = []

    def iter_transform(self, images, rows):
        for start in range(rows.start, rows.stop, self.batch_size):
            batch = slice(start, min(start + self.batch_size, rows.stop))
            names = [str(image) for image in images[batch]]
            bad = {start + i: f"{n} is bad" for i, n in enumerate(names) if "bad" in n}
            self.embedded += names
            if self.log is not None:
                with open(self.log, "a") as file:
                    file.write("".join(f"{name}\n" for name in names))
            time.sleep(self.pause)
            Z = np.stack([embedding(name) for name in names])
            Z[[i - start for i in bad]] = np.nan
            yield batch, Z, bad

    def fingerprint(self):
        return "fake"


def main(folder, log, n_images, shard_size):
    from sklearn_fpe.embeddings import write_shards

    images = [f"{i}.bad" if i % 11 == 3 else f"{i}.png" for i in range(n_images)]
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write_shards(
                FakeEmbedder(log=log, pause=0.001),
                images,
                folder,
                shard_size=shard_size,
                metadata={"label": [name.split(".")[0][-1] for name in images]},
            )
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
