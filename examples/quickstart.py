"""
Quickstart: more neurons, not more parameters
=============================================

Fit one small network on the digits data. Then compare it with logistic regression and
with a dense network that has as many non-zero parameters.
"""

# %%
# Fit a network of four parent neurons, each of which is split into four children. No
# scaler is needed, because the estimator standardises the columns. ``n_nonzero_`` is
# the number of parameters after pruning. ``budget_`` is the largest number allowed: the
# number of parameters of a dense network with four hidden neurons.

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

model = FPEClassifier((4,), expansion=4, random_state=0)
model.fit(X_train, y_train)
print(f"{model.n_nonzero_} of {model.budget_} parameters")
print(f"test accuracy {100 * model.score(X_test, y_test):.1f} %")

# %%
# Compare the network with three baselines: logistic regression, which has a weight for
# every pair of pixel and digit; the dense network with the same number of parameters,
# ``expansion=1``; and a linear model that is pruned to the same number of parameters.
# With ``skip_connection=True`` the network has the weights of such a linear model as
# well, under the same budget. ± is the standard deviation over three random splits of
# the data.

models = {
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "dense network": FPEClassifier((4,), expansion=1),
    "pruned linear model": FPEClassifier((), budget=310),
    "expanded network": FPEClassifier((4,), expansion=4),
    "expanded, with skip": FPEClassifier((4,), expansion=4, skip_connection=True),
}


def accuracy(model, seed):
    """Fit on three quarters of the rows; return accuracy on the others in %."""
    parts = train_test_split(X, y, stratify=y, random_state=seed)
    X_train, X_test, y_train, y_test = parts
    if isinstance(model, FPEClassifier):
        model.set_params(random_state=seed)
    return 100 * model.fit(X_train, y_train).score(X_test, y_test)


scores = {
    name: [accuracy(model, seed) for seed in range(3)] for name, model in models.items()
}
print(f"{'':20} parameters  test accuracy (%)")
for name, found in scores.items():
    n_parameters = getattr(models[name], "n_nonzero_", 650)
    print(f"{name:20} {n_parameters:10}  {np.mean(found):.1f} ± {np.std(found):.1f}")

# %%
# At equal parameters the expanded network is far more accurate than the dense one, and
# it competes with logistic regression, which has twice as many parameters.

fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
for row, (name, found) in enumerate(scores.items()):
    color = "C7" if name == "logistic regression" else "C0"
    ax.errorbar(
        np.mean(found), row, xerr=np.std(found), fmt="o", color=color, capsize=3
    )
labels = [f"{name} ({getattr(models[name], 'n_nonzero_', 650)})" for name in models]
ax.set_yticks(range(len(labels)), labels)
ax.invert_yaxis()
ax.set(
    xlabel="test accuracy (%, higher is better)",
    title="Digits (number of parameters)",
)
ax.grid(axis="x", alpha=0.3)
# sphinx_gallery_start_ignore
if mpl.get_backend().lower() == "agg" and "sphinx_gallery" not in sys.modules:
    fig.savefig("quickstart.png", dpi=150)
    print("saved quickstart.png")
    plt.close(fig)
# sphinx_gallery_end_ignore
plt.show()
