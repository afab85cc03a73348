"""
One fit on two processes
========================

Where the rows do not fit on one machine, several processes fit one model together, each
on its own rows. ``distributed=True`` is all that the estimator has to be told. Here two
processes on this machine share the digits; on a cluster the same script runs unchanged.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sklearn_fpe
from sklearn_fpe import FPEClassifier

# %%
# **The script of a process.** torchrun starts it once for every process and tells each
# one its number in the environment variable ``RANK``. The process reads its own rows,
# here every second one, and calls ``fit``. There the processes add up their gradients,
# once a step, so that all of them end with the same model. One of them would be enough
# to store it; here both do, to compare them.

TRAIN = """
import os
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import sklearn_fpe

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
X, y = load_digits(return_X_y=True)
X_train, _, y_train, _ = train_test_split(X, y, random_state=0)
model = sklearn_fpe.FPEClassifier((8,), random_state=0, distributed=True)
model.fit(X_train[rank::size], y_train[rank::size])
sklearn_fpe.save(model, f"{rank}.safetensors")
"""

# %%
# **The start.** ``python -m torch.distributed.run`` is torchrun.

torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
torchrun += ["--nproc-per-node", "2"]
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "train.py").write_text(TRAIN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, "train.py"], cwd=folder, env=environment, check=True)
    models = [sklearn_fpe.load(Path(folder, f"{rank}.safetensors")) for rank in (0, 1)]

# %%
# Both processes have learned the same network, to the bit, although each has seen half
# of the rows only.

first, second = models
for coef, other in zip(first.coefs_, second.coefs_, strict=True):
    assert np.array_equal(coef.toarray(), other.toarray())

# %%
# It is about as accurate as the network of one process that has all rows. The two
# differ as those of two seeds do, because the rows of a batch are others.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
one = FPEClassifier((8,), random_state=0).fit(X_train, y_train)
print(f"two processes: {first.score(X_test, y_test):.3f}")
print(f"one process:   {one.score(X_test, y_test):.3f}")
