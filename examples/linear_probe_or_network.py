"""
Linear probe or network, at equal budgets
=========================================

How much does a hidden layer buy, if every model has the same number of non-zero
parameters? On embeddings the question is open: there a linear probe with pruned weights
is hard to beat. Here four kinds of model are compared on small images of digits.
"""

# %%
# A budget is what a dense network with one hidden layer of ``width`` neurons has,
# biases included. ``hidden_layer_sizes=()`` is a linear probe, which ``budget=`` prunes
# to the same number. ``expansion=1`` is the dense network. ``skip_connection=True``
# adds weights from the inputs straight to the outputs, which compete with the others
# for the budget.

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
# One search for every kind and budget, each at its own best learning rate.
# ``prune="gradual"`` lets training find which weights are worth the budget, and
# ``split="learned"`` which child keeps which input.

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
# an error that is halved is the same step everywhere. The dense network alone has to
# squeeze everything through a few neurons. With a skip connection, or expanded, it
# catches up with the linear probe, which keeps nearly all of its weights at the right
# end. What is best between these depends on how much the features interact.

fig, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
markers = dict(zip(kinds, "osD^v", strict=True))
for kind, points in curves.items():
    n_nonzero, score, _ = np.array(points).T
    ax.plot(n_nonzero, score / 100, label=kind, marker=markers[kind], alpha=0.8)
ax.set(
    xscale="log",
    yscale="logit",
    xlabel="Non-zero parameters (fewer is better)",
    ylabel="Accuracy on held-out folds (%, higher is better)",
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
