"""
Choosing the expansion by cross-validation
==========================================

``expansion=1`` is the dense network. Every other expansion has the same number of
non-zero parameters and the same schedule, so a search over ``expansion`` is a fair
comparison. The best value depends on the data and on the width of the network, so let
:class:`~sklearn.model_selection.GridSearchCV` find it.
"""

# %%
# Expansions differ in their best learning rate, so the search covers both. ``memory=``
# caches the dense warm-up, which does not depend on ``expansion``, ``split`` or
# ``prune``: it is trained once per fold and learning rate, and every expansion starts
# from it. The results are bit-identical to those without a cache.

import tempfile

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_fpe import FPEClassifier
from sklearn_fpe.inspection import ExpansionCurveDisplay

X, y = load_digits(return_X_y=True)
grid = {"expansion": [1, 2, 4, 8], "learning_rate_init": [2e-2, 5e-2]}
folds = StratifiedKFold(3, shuffle=True, random_state=0)


def search(width, memory):
    """Search the grid at a width of the parent layer."""
    model = FPEClassifier((width,), max_iter=20, memory=memory, random_state=0)
    return GridSearchCV(model, grid, cv=folds).fit(X, y)


with tempfile.TemporaryDirectory() as memory:
    searches = {width: search(width, memory) for width in (4, 8)}

# %%
# Print the best candidate of each width:

for width, found in searches.items():
    model = found.best_estimator_
    print(f"{width} parents, {model.n_nonzero_} non-zero parameters")
    print(f"  best: {found.best_params_}, accuracy {found.best_score_:.3f}")

# %%
# The curve shows each expansion at its own best learning rate. The dashed line is the
# dense network, the band is one standard deviation over the folds. The smaller network
# gains more, because more features share each of its neurons. From two children on, the
# curves are flat within the band, so the order of these expansions is a matter of
# chance.

fig, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for width, found in searches.items():
    ExpansionCurveDisplay.from_cv_results(
        found.cv_results_, ax=ax, name=f"{width} parents", score_name="Accuracy"
    )
ax.set_title("Digits, equal non-zero parameters")
plt.show()

# %%
# A parent may get fewer children than you ask for, because every child needs at least
# one input. ``expansion_`` is the number of children per parent, and a warning gives
# the reason if it is smaller than ``expansion``. If the network is pruned once, at the
# split (``prune="magnitude"`` or ``"structured"``), expansions above about (inputs +
# classes) / classes are not useful, because the copies of the outgoing weights alone
# then exceed the budget. This limit is 7 here, and 6 for embeddings of 512 columns and
# 100 classes.

best = searches[8].best_estimator_
print(f"asked for {best.expansion}, made {best.expansion_}, a value per hidden layer")
print(f"{best.n_nonzero_} of {best.budget_} parameters in the budget are used")
