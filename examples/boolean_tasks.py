"""
Boolean tasks: interference that can be counted
===============================================

The features of a Boolean formula are known. A formula in disjunctive normal form is
true if any of its clauses is true; a clause is true if all of its literals are. Every
clause is a feature that hidden neurons have to detect, and with as many clauses as
neurons the clauses interfere.
"""

# %%
# :func:`~sklearn_fpe.datasets.make_dnf` draws a random formula and rows of inputs, half
# of which make the formula true. Here the formula has eight clauses of four literals
# each, for eight parent neurons.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_fpe import FPEClassifier
from sklearn_fpe.datasets import make_dnf
from sklearn_fpe.inspection import (
    ChildInputsDisplay,
    clause_collisions,
    clause_coverage,
    expected_collisions,
    expected_coverage,
)

_, _, formula = make_dnf(n_clauses=8, clause_size=4, random_state=0)
print(str(formula).replace(" | ", "\n| "))

# %%
# Fit four networks of equal size. The dense network is ``expansion=1``.
# ``split="random"`` assigns the inputs of every neuron to its children at random.
# ``split="groups"`` keeps the variables of a clause together. It has to know the
# clauses: ``formula.feature_groups`` is the clause of every column. These two networks
# are pruned once, at the split. ``split="learned"``, the default, does not know the
# clauses: every child starts with all inputs, and gradual pruning decides which inputs
# each child keeps.

settings = {
    "dense": {"expansion": 1},
    "random split": {"expansion": 2, "split": "random", "prune": "magnitude"},
    "clause-aware split": {"expansion": 2, "split": "groups", "prune": "magnitude"},
    "learned split": {"expansion": 2, "split": "learned", "prune": "gradual"},
}


def fit(name, seed):
    """Fit one network on one task; return it, its formula and its test accuracy."""
    X, y, formula = make_dnf(12_000, n_clauses=8, clause_size=4, random_state=seed)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed)
    kwargs = dict(settings[name])
    if kwargs.get("split") == "groups":
        kwargs["feature_groups"] = formula.feature_groups
    model = FPEClassifier((8,), max_iter=40, random_state=seed, **kwargs)
    model.fit(X_train, y_train)
    return model, formula, model.score(X_test, y_test)


results = {name: [fit(name, seed) for seed in range(3)] for name in settings}
accuracy = {name: [100 * run[2] for run in runs] for name, runs in results.items()}
for name, scores in accuracy.items():
    print(f"{name:19} {np.mean(scores):5.1f} ± {np.std(scores):.1f} % test accuracy")

# %%
# Two measures count the effect of a split. Two clauses *collide* in a child that reads
# all inputs of both; a split should separate them. A clause is *covered* if some child
# still reads all of its inputs; a split should not tear it apart. A random split
# separates clauses but also tears clauses apart. The clause-aware split and the learned
# split separate clauses and cover them.

measures = {"collisions per neuron": clause_collisions, "coverage": clause_coverage}
measured = {
    label: {name: [f(m, d) for m, d, _ in results[name]] for name in settings}
    for label, f in measures.items()
}
fig, axes = plt.subplots(1, 3, figsize=(7.5, 3), layout="constrained", sharey=True)
panels = {"test accuracy (%)": accuracy, **measured}
for ax, (label, values) in zip(axes, panels.items(), strict=True):
    for row, runs in enumerate(values.values()):
        ax.barh(row, np.mean(runs), color=f"C{row}", alpha=0.6)
        ax.plot(runs, [row] * len(runs), "o", color=f"C{row}", markeredgecolor="white")
        ax.annotate(
            f"{np.mean(runs):.3g}",
            (0, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)
axes[0].set_yticks(range(len(settings)), settings)
axes[0].invert_yaxis()
plt.show()

# %%
# For a random split the expected values are known. A clause of :math:`k` literals stays
# whole in a neuron with probability :math:`\alpha^{-(k-1)}`, while two clauses collide
# with probability :math:`\alpha^{-(2k-1)}`, which falls much faster. The measured
# numbers are lower, because pruning removes inputs as well.

for alpha in (1, 2, 4):
    collisions = expected_collisions(alpha, clause_size=4, n_clauses=8)
    coverage = expected_coverage(alpha, clause_size=4, n_neurons=8)
    print(f"expansion {alpha}: {collisions:.3f} collisions, coverage {coverage:.2f}")

# %%
# Plot the inputs of one neuron with a clause-aware split, sorted by clause, with a line
# between clauses. Each child reads whole clauses, and its sibling reads the other
# clauses.

model, formula, _ = results["clause-aware split"][0]
order = np.argsort(formula.feature_groups, kind="stable")
display = ChildInputsDisplay.from_estimator(model, neuron=0)
sorted_display = ChildInputsDisplay(
    weights=display.weights[:, order], seen=display.seen[:, order], neuron=0
)
plt.close(display.figure_)
fig, ax = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
sorted_display.plot(ax)
for clause in range(1, 8):
    ax.axvline(4 * clause - 0.5, color="black", linewidth=0.5)
ax.set_xlabel("Input, sorted by clause")
plt.show()
