"""
One fit on two processes
========================

Where the rows do not fit on one machine, several processes fit one model together, each
on its own rows. ``distributed=True`` is all that the estimator has to be told. Here two
processes on this machine share the digits; on a cluster the same script runs unchanged.
"""

# %%
# **The script of a process.** torchrun starts it once for every process and tells each
# one its number in the environment variable ``RANK``. The process reads its own rows,
# here every second one, and calls ``fit``. There the processes add up their gradients,
# once a step, so that all of them end with the same model; one of them stores it.

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sklearn_fpe
from sklearn_fpe import FPEClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
SETTINGS = {"hidden_layer_sizes": (8,), "max_iter": 30, "random_state": 0}


def fit_part(rank, n_processes, folder):
    """Fit together with the other processes; store what this one has learned."""
    part = slice(rank, None, n_processes)
    model = FPEClassifier(**SETTINGS, distributed=True)
    model.fit(X_train[part], y_train[part])
    sklearn_fpe.save(model, Path(folder, f"{rank}.safetensors"))


if "RANK" in os.environ:
    fit_part(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), sys.argv[1])
    sys.exit()

# %%
# **The start.** This is what ``torchrun --standalone --nproc-per-node 2 script.py``
# does. Every process stores its model, to compare them.

torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
torchrun += ["--nproc-per-node", "2"]
start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
        [*torchrun, __file__, folder],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    first, second = (
        sklearn_fpe.load(Path(folder, f"{rank}.safetensors")) for rank in (0, 1)
    )
print(f"{time.perf_counter() - start:.0f} seconds, most of them to import the packages")

# %%
# Both processes have learned the same network, to the bit, although each has seen half
# of the rows only. It is as accurate as the network of one process that has all rows.

one = FPEClassifier(**SETTINGS).fit(X_train, y_train)
assert all(
    np.array_equal(a.toarray(), b.toarray())
    for a, b in zip(first.coefs_, second.coefs_, strict=True)
)
print(f"two processes: {first.score(X_test, y_test):.3f}")
print(f"one process:   {one.score(X_test, y_test):.3f}")
