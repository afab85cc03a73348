"""A fit on shards: anonymous memory that it adds, and how often it reads each row.

    python -m benchmarks.shards [--shards 40] [--rows 65536] [--columns 512]

The shards are float16, in a temporary folder that is removed. Reads are counted row by
row, before the first epoch and in every epoch. The fit has a process of its own, and
mapped file pages do not count, as in ``benchmarks/memory.py``.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks._report import print_table, write_json
from benchmarks._rss import peak_anonymous
from sklearn_fpe import FPEClassifier
from sklearn_fpe.datasets import _npy, _parquet, open_shards


def make_shards(folder, kind, n_shards, n_rows, n_columns, n_classes, seed=0):
    """Write class means plus noise to shards; return the classes of all rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_shards * n_rows)
    means = rng.standard_normal((n_classes, n_columns), dtype=np.float32)
    for i, classes in enumerate(y.reshape(n_shards, n_rows)):
        part = np.empty((n_rows, n_columns), np.float16)
        for start in range(0, n_rows, 8192):
            rows = slice(start, start + 8192)
            noise = rng.standard_normal((len(part[rows]), n_columns), np.float32)
            part[rows] = means[classes[rows]] + 4 * noise
        if kind == "npy":
            np.save(folder / f"img_emb_{i}.npy", part)
        else:
            write_parquet(folder / f"img_emb_{i}.parquet", part)
    return y


def write_parquet(path, part, group=8192):
    """Write an array as one column of lists of a fixed length."""
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array(part.ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, part.shape[1])
    parquet.write_table(pa.table({"embedding": lists}), path, row_group_size=group)


class ReadCounter:
    """A callback that counts the reads of every row of every epoch.

    Parameters
    ----------
    shards : Shards
        The rows.
    """

    def __init__(self, shards):
        self.counts = {path: None for path in shards.files}
        self.before, self.per_epoch = None, []
        for reader in (_npy.NpyReader, _parquet.ParquetReader):
            self._count(reader)

    def _count(self, reader):
        real, counter = reader.read_into, self

        def read_into(self, out, rows):
            real(self, out, rows)
            file = self._file
            if counter.counts[file.path] is None:
                counter.counts[file.path] = np.zeros(file.n_rows, np.int32)
            counter.counts[file.path][rows] += 1

        reader.read_into = read_into

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        if context.task_name == "epoch":
            self.start = np.concatenate([*self.counts.values()])
            if self.before is None:
                self.before = self.start

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            reads = np.concatenate([*self.counts.values()]) - self.start
            self.per_epoch.append((int(reads.min()), int(reads.max())))


def measure(folder, y, n_epochs):
    """Fit on the shards; return what was seen."""
    torch.set_num_threads(1)
    shards = open_shards(folder)
    counter = ReadCounter(shards)
    model = FPEClassifier(
        (32,),
        expansion=4,
        max_iter=n_epochs,
        warmup=1,
        learning_rate_init=1e-3,
        random_state=0,
        device="cpu",
    ).set_callbacks(counter)
    start = time.perf_counter()
    fit = peak_anonymous(lambda: model.fit(shards, y))
    seconds = time.perf_counter() - start
    return {
        "kind": Path(shards.files[0]).suffix[1:],
        "files": len(shards.files),
        "rows": len(shards),
        "data_MB": shards.nbytes / 1e6,
        "fit_peak_MB": fit / 1e6,
        "fit_s": seconds,
        "epochs": len(counter.per_epoch),
        "reads_before_epochs": int(counter.before.max()),
        "least_reads_an_epoch": min(least for least, _ in counter.per_epoch),
        "most_reads_an_epoch": max(most for _, most in counter.per_epoch),
        "accuracy_of_10000": model.score(shards[:10_000], y[:10_000]),
    }


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--parquet-files", type=int, default=5)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", default="benchmarks/results/shards.json")
    args = parser.parse_args()
    shape = args.rows, args.columns, args.classes
    rows = []
    for kind, n_files in (("npy", args.shards), ("parquet", args.parquet_files)):
        with tempfile.TemporaryDirectory() as folder:
            y = make_shards(Path(folder), kind, n_files, *shape)
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned) as pool:
                rows.append(pool.submit(measure, folder, y, args.epochs).result())
        print_table(rows[-1:], list(rows[-1]))
    write_json(args.json, rows, settings=vars(args))


if __name__ == "__main__":
    main()
