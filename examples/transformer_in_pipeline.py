"""
Hidden activations as features
==============================

:class:`~sklearn_fpe.FPETransformer` trains the same network as the classifier and
returns the activations of its last hidden layer, one column per kept child. Any
estimator can follow it; here a nearest-neighbour classifier does.
"""

# %%
# Four parent neurons represent an image by four numbers. With ``expansion=4`` a network
# with the same number of non-zero parameters represents it by up to sixteen numbers.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPETransformer

X, y = load_digits(return_X_y=True)


def hidden(expansion):
    """Make the transformer, with its columns brought to one scale."""
    transformer = FPETransformer((4,), expansion=expansion, max_iter=30, random_state=0)
    return make_pipeline(transformer, StandardScaler())


for expansion in (1, 2, 4):
    model = make_pipeline(hidden(expansion), KNeighborsClassifier(n_neighbors=10))
    scores = cross_val_score(model, X, y, cv=3)
    print(f"expansion {expansion}: {100 * np.mean(scores):.1f} % accuracy")

# %%
# To plot the activations in two dimensions, project them by linear discriminant
# analysis, which finds the directions that separate the digits best. The titles give
# the accuracy of the nearest-neighbour classifier on *all* activations of held-out
# images.

X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

fig, axes = plt.subplots(1, 2, figsize=(6.5, 4), layout="constrained")
for ax, expansion in zip(axes, (1, 4), strict=True):
    model = hidden(expansion).fit(X_train, y_train)
    Z_train, Z_test = model.transform(X_train), model.transform(X_test)
    neighbours = KNeighborsClassifier(n_neighbors=10).fit(Z_train, y_train)
    plane = LinearDiscriminantAnalysis(n_components=2).fit(Z_train, y_train)
    points = plane.transform(Z_test)
    for digit in range(10):
        of_digit = points[y_test == digit]
        ax.scatter(*of_digit.T, s=10, color=f"C{digit}", alpha=0.35)
        ax.annotate(
            str(digit), of_digit.mean(axis=0), color=f"C{digit}", size=15, weight="bold"
        )
    ax.set(
        title=f"expansion {expansion}: {Z_test.shape[1]} activations,\n"
        f"{100 * neighbours.score(Z_test, y_test):.1f} % accuracy",
        xlabel="first discriminant direction",
    )
axes[0].set_ylabel("second discriminant direction")
plt.show()

# %%
# The columns have names, because ``set_output`` and feature importances use them.

print("names:", ", ".join(model[0].get_feature_names_out()[:4]), "...")
