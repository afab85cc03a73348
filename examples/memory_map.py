"""
Large data from a memory map
============================

Train on a file that does not fit into memory. Memory maps that would take more than
half a gigabyte as float32 are streamed: batches are read, converted and standardised
one after another, and the file is never copied as a whole.
"""

# %%
# Write a file of 150 000 rows with 1024 features, piece by piece. The features are
# stored as bytes to save disk space; float16 would do as well.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from _watch import Watch

from sklearn_fpe import FPEClassifier

n_rows, n_features, n_classes = 150_000, 1024, 10
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "X.npy")
rng = np.random.default_rng(0)
centers = rng.normal(size=(n_classes, n_features)).astype(np.float32)
y = rng.integers(0, n_classes, n_rows)

X = np.lib.format.open_memmap(path, "w+", np.uint8, (n_rows, n_features))
for start in range(0, n_rows, 10_000):
    rows = slice(start, start + 10_000)
    noise = rng.standard_normal((10_000, n_features), dtype=np.float32)
    X[rows] = np.clip(128 + 4 * centers[y[rows]] + 30 * noise, 0, 255)
X.flush()
print(f"{X.size / 2**20:.0f} MiB on disk, {4 * X.size / 2**20:.0f} as float32")

# %%
# Opening the file reads nothing, and training takes the map like any array. Rows are
# shuffled in blocks of neighbouring rows, so that the disk is read sequentially within
# a block. If the rows are sorted by class, shuffle them once when you write the file.
# ``Watch`` notes the memory of this process ten times a second; it is in
# ``examples/_watch.py``.

X = np.load(path, mmap_mode="r")
train, test = slice(0, 140_000), slice(140_000, None)

model = FPEClassifier((8,), max_iter=2, warmup=1, random_state=0)
with Watch() as watch:
    model.fit(X[train], y[train])
print(
    f"accuracy on the last rows of the file {100 * model.score(X[test], y[test]):.1f} %"
)

# %%
# Memory grows only by the rows that are read and shuffled at a time, so a longer file
# takes more time but not more memory.

seconds, growth = np.array(watch.points).T
fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
ax.fill_between(seconds, growth, alpha=0.4)
ax.plot(seconds, growth, label="growth of the process's own memory")
ax.axhline(4 * X.size / 2**20, color="C3", linestyle="--", label="X as float32")
ax.set(
    xlabel="seconds of fit",
    ylabel="MiB (lower is better)",
    xlim=(0, None),
    ylim=(0, None),
)
ax.legend(loc="center right")
plt.show()

# %%
# If the data are not in one file, pass them to ``partial_fit`` piece by piece. Each
# call runs one epoch over the given rows, and the first ``warmup`` calls come before
# the split. ``partial_fit`` prunes once, at the split, because the budget has to hold
# after every later call.

model = FPEClassifier((8,), warmup=2, random_state=0)
for start in range(0, 50_000, 10_000):
    rows = slice(start, start + 10_000)
    model.partial_fit(X[rows], y[rows], classes=np.arange(n_classes))
print(f"after {model.n_iter_} pieces: {100 * model.score(X[test], y[test]):.1f} %")

del X
folder.cleanup()
