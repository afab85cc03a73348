"""
Choosing the expansion by cross-validation
==========================================

``expansion=1`` is the dense network. Every other expansion has the same number of
non-zero parameters and the same schedule, so a search over ``expansion`` compares like
with like. Which value is best depends on the data and on the width: let
:class:`~sklearn.model_selection.GridSearchCV` find out.
"""

# %%
# Each expansion deserves its own learning rate, so the search goes over both.
# ``memory=`` keeps the dense warm-up, which depends on neither ``expansion`` nor
# ``split`` nor ``prune``: it is trained once per fold and learning rate, and every
# expansion starts from it. The result is the same to the bit as without.

import tempfile

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_fpe import FPEClassifier
from sklearn_fpe.inspection import ExpansionCurveDisplay

X, y = load_digits(return_X_y=True)
grid = {"expansion": [1, 2, 3, 4], "learning_rate_init": [1e-2, 3e-2]}
folds = StratifiedKFold(3, shuffle=True, random_state=0)


def search(width, memory):
    """Search the grid at a width of the parent layer."""
    model = FPEClassifier((width,), max_iter=20, memory=memory, random_state=0)
    return GridSearchCV(model, grid, cv=folds).fit(X, y)


with tempfile.TemporaryDirectory() as memory:
    searches = {width: search(width, memory) for width in (4, 8)}

# %%
# The best candidate of each width, and what it was trained with:

for width, found in searches.items():
    model = found.best_estimator_
    print(f"{width} parents, {model.n_nonzero_} non-zero parameters")
    print(f"  best: {found.best_params_}, accuracy {found.best_score_:.3f}")

# %%
# The curve shows each expansion at its own best learning rate; the dashed line is the
# dense network, the band one standard deviation over the folds. The smaller network
# gains more: its neurons have more to share.

fig, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for width, found in searches.items():
    ExpansionCurveDisplay.from_cv_results(
        found.cv_results_, ax=ax, name=f"{width} parents", score_name="Accuracy"
    )
ax.set_title("Digits, equal non-zero parameters")
plt.show()

# %%
# The expansion that was asked for need not be had: ``expansion_`` says what was done,
# and a warning says why. The copies of the outgoing weights bound it: a useful range
# ends near (inputs + classes) / classes, which is 7 here, and 6 for embeddings of 512
# columns and 100 classes.

best = searches[8].best_estimator_
print(f"asked for {best.expansion}, done {best.expansion_}, a value per hidden layer")
print(f"{best.n_nonzero_} of {best.budget_} parameters in the budget are used")
