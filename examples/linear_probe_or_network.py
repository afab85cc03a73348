"""
Linear probe or network, at equal budgets
=========================================

How much does a hidden layer gain if every model has the same number of non-zero
parameters? On embeddings this is an open question, because a linear probe with pruned
weights is hard to beat there. This example compares five kinds of model on small images
of digits.
"""

# %%
# Each budget is the number of parameters of a dense network with one hidden layer of
# ``width`` neurons, biases included. ``hidden_layer_sizes=()`` is a linear probe, which
# is pruned to the same number by ``budget=``. ``expansion=1`` is the dense network.
# ``skip_connection=True`` adds weights from the inputs straight to the outputs, which
# compete with the others for the budget.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_fpe import FPEClassifier

X, y = load_digits(return_X_y=True)
n_inputs, n_outputs = X.shape[1], 10
budgets = {
    width: width * (n_inputs + 1 + n_outputs) + n_outputs for width in (2, 3, 4, 6, 8)
}

kinds = {
    "linear probe": {},
    "dense": {"expansion": [1]},
    "dense + skip": {"expansion": [1], "skip_connection": [True]},
    "expanded": {"expansion": [4]},
    "expanded + skip": {"expansion": [4], "skip_connection": [True]},
}


def grid_of(kind, width, budget):
    """Return the grid of a kind of model at a budget: two learning rates."""
    hidden = () if kind == "linear probe" else (width,)
    return {
        "hidden_layer_sizes": [hidden],
        "budget": [budget],
        "learning_rate_init": [1e-2, 3e-2],
        **kinds[kind],
    }


# %%
# Run one search for every kind and budget, so that each model has its own best learning
# rate. With ``prune="gradual"`` training decides which weights to keep, and with
# ``split="learned"`` it decides which child keeps which input.

folds = StratifiedKFold(3, shuffle=True, random_state=0)
model = FPEClassifier(split="learned", prune="gradual", max_iter=30, random_state=0)
curves = {}
for kind in kinds:
    curves[kind] = []
    for width, budget in budgets.items():
        grid = grid_of(kind, width, budget)
        search = GridSearchCV(model, grid, cv=folds).fit(X, y)
        n_nonzero = search.best_estimator_.n_nonzero_
        spread = search.cv_results_["std_test_score"][search.best_index_]
        curves[kind].append((n_nonzero, 100 * search.best_score_, 100 * spread))

for kind, points in curves.items():
    scores = "  ".join(f"{n}: {score:.1f} ± {s:.1f}" for n, score, s in points)
    print(f"{kind:16} {scores}")

# %%
# Points are means over the folds. The vertical axis is stretched towards 100 %, so that
# halving the error is about the same step everywhere. The dense network has to
# represent all features with a few neurons. With a skip connection or with expansion,
# it catches up with the linear probe, which keeps nearly all of its weights at the
# right end of the plot. The best of these models depends on how strongly the features
# interact.

fig, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
markers = dict(zip(kinds, "osD^v", strict=True))
for kind, points in curves.items():
    n_nonzero, score, _ = np.array(points).T
    ax.plot(n_nonzero, score / 100, label=kind, marker=markers[kind], alpha=0.8)
ax.set(
    xscale="log",
    yscale="logit",
    xlabel="Non-zero parameters (fewer is better)",
    ylabel="Accuracy (%, higher is better)",
    title="Digits: linear probe or network",
)
ticks = list(budgets.values())
ax.set_xticks(ticks, [str(n) for n in ticks])
percent = [65, 75, 85, 90, 95, 96, 97, 98]
ax.set_yticks([p / 100 for p in percent], [str(p) for p in percent])
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend(loc="lower right")
plt.show()
