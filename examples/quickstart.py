"""
Quickstart: more neurons, not more parameters
=============================================

A small network on the digits data, dense and expanded, with the same number of non-zero
parameters and the same schedule. The expanded one has more neurons, each of which sees
a part of the input.
"""

# %%
# Every pair of rows below has the same budget: ``expansion=1`` is the dense network,
# ``expansion=4`` splits each of its hidden neurons into four.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_fpe import FPEClassifier

X, y = load_digits(return_X_y=True)
widths, expansions, seeds = (4, 8, 16), (1, 2, 4, 8), range(3)


def accuracy(width, expansion, seed):
    """Fit on three quarters of the data; return test accuracy and parameters."""
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, stratify=y, random_state=seed
    )
    model = FPEClassifier((width,), expansion=expansion, random_state=seed)
    model.fit(X_train, y_train)
    return model.score(X_test, y_test), model.n_nonzero_


# %%
# At expansions of 8 the copies of the outgoing weights alone are more than the budget.
# The library says so, and still trains what the budget allows.

import warnings  # noqa: E402

results = {}
print(f"{'parents':>7} {'expansion':>9} {'parameters':>10} {'test accuracy':>14}")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The outgoing weights", UserWarning)
    for width in widths:
        for expansion in expansions:
            scores, sizes = zip(
                *(accuracy(width, expansion, seed) for seed in seeds), strict=True
            )
            results[width, expansion] = np.mean(scores), np.std(scores)
            mean, spread = 100 * np.array(results[width, expansion])
            name = "1 (dense)" if expansion == 1 else expansion
            print(f"{width:>7} {name:>9} {sizes[0]:>10} {mean:>7.1f} +- {spread:.1f}")

# %%
# The smaller the network, the more its neurons have to share, and the more it gains.

import matplotlib as mpl  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for width in widths:
    means = [100 * results[width, a][0] for a in expansions]
    spreads = [100 * results[width, a][1] for a in expansions]
    ax.errorbar(
        expansions, means, spreads, marker="o", capsize=3, label=f"{width} parents"
    )
ax.set_xscale("log", base=2)
ax.set_xticks(expansions, [str(a) for a in expansions])
ax.set(
    xlabel="expansion (1: dense)",
    ylabel="test accuracy (%)",
    title="Digits, equal non-zero parameters",
)
ax.legend(title="hidden layer")
if mpl.get_backend().lower() == "agg":
    fig.savefig("quickstart.png", dpi=150)
    print("saved quickstart.png")
else:
    plt.show()
