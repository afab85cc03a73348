"""
Save a model, load it, and run it without Python
================================================

Train a model once and use it in many places. ``save`` writes a file that contains no
code. ``to_onnx`` writes a file that any ONNX runtime can run.
"""

# %%
# Fit a small network on the digits data and save it. Use pickles for yourself only;
# ``save`` and ``to_onnx`` write files that others can load without running your code.

import pickle
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sklearn_fpe
from sklearn_fpe import FPEClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = FPEClassifier((16,), skip_connection=True, max_iter=20, random_state=0)
model.fit(X_train, y_train)
print(f"{model.n_nonzero_} parameters, accuracy {model.score(X_test, y_test):.3f}")

folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "digits.safetensors")
sklearn_fpe.save(model, path)

# %%
# ``load`` checks the format, the checksum, the shapes and the values of the file before
# it builds an estimator. The loaded model is complete: it can predict, and it can be
# trained further.

loaded = sklearn_fpe.load(path)
print(
    "same predictions:", np.array_equal(loaded.predict(X_test), model.predict(X_test))
)

# %%
# A damaged file raises an error; it does not load as a wrong model.

damaged = bytearray(path.read_bytes())
damaged[-1] ^= 1
broken = Path(folder.name, "broken.safetensors")
broken.write_bytes(damaged)
try:
    sklearn_fpe.load(broken)
except sklearn_fpe.ModelFileError as error:
    print(error)

# %%
# The ONNX model takes float32 rows without scaling, because the scaling is part of the
# model, and returns labels and probabilities. The results differ from those of the
# estimator by rounding only.

onnx_model = sklearn_fpe.to_onnx(model)
session = onnxruntime.InferenceSession(onnx_model.SerializeToString())
labels, probabilities = session.run(None, {"X": X_test.astype(np.float32)})
difference = np.abs(probabilities - model.predict_proba(X_test)).max()
print("same labels:", np.array_equal(labels, model.predict(X_test)))
print(f"largest difference of a probability: {difference:.1e}")

# %%
# Compare the sizes of the files. ``save`` stores the kept weights and their positions;
# the ONNX file stores the whole matrices, zeros included.

sizes = {
    "pickle": len(pickle.dumps(model)),
    "save": path.stat().st_size,
    "ONNX": len(onnx_model.SerializeToString()),
}
fig, ax = plt.subplots(figsize=(6.5, 2), layout="constrained")
ax.barh(list(sizes), [n / 1024 for n in sizes.values()], alpha=0.7)
ax.set(xlabel="KiB (lower is better)")
plt.show()
folder.cleanup()
