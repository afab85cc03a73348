"""
One fit on two processes
========================

If the rows do not fit on one machine, several processes can fit one model together,
each on its own rows. Set ``distributed=True``; nothing else changes. Here two processes
on this machine share the digits data. On a cluster the same script runs unchanged.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sklearn_fpe
from sklearn_fpe import FPEClassifier

# %%
# **The script of a process.** torchrun starts the script once for every process and
# passes the number of the process in the environment variable ``RANK``. The process
# reads its own rows, here every second row, and calls ``fit``. In ``fit`` the processes
# sum their gradients once a step, so all of them end with the same model. One process
# would be enough to save it; here both processes save it, so that the files can be
# compared.

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
# **Start the processes.** ``python -m torch.distributed.run`` is the same as
# ``torchrun``.

torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
torchrun += ["--nproc-per-node", "2"]
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "train.py").write_text(TRAIN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, "train.py"], cwd=folder, env=environment, check=True)
    models = [sklearn_fpe.load(Path(folder, f"{rank}.safetensors")) for rank in (0, 1)]

# %%
# Both processes have learned the same network, bit for bit, although each process has
# read only half of the rows.

first, second = models
for coef, other in zip(first.coefs_, second.coefs_, strict=True):
    assert np.array_equal(coef.toarray(), other.toarray())

# %%
# This model is about as accurate as the model of one process that has all rows. The two
# differ as two seeds do, because their batches hold different rows.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
one = FPEClassifier((8,), random_state=0).fit(X_train, y_train)
print(f"two processes: {first.score(X_test, y_test):.3f}")
print(f"one process:   {one.score(X_test, y_test):.3f}")

# %%
# Compare the training loss, which is computed over all rows in both runs.

fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
ax.plot(first.loss_curve_, label="two processes")
ax.plot(one.loss_curve_, "--", label="one process")
ax.set(xlabel="epoch", ylabel="training loss", yscale="log")
ax.legend()
plt.show()
