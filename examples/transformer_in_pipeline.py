"""
Hidden activations as features
==============================

:class:`~sklearn_fpe.FPETransformer` trains the same network as the classifier and
returns its last hidden layer, one column per kept child. Any estimator can follow it,
here a nearest-neighbour classifier.
"""

# %%
# Four parent neurons represent an image by four numbers. With ``expansion=4`` the same
# number of non-zero parameters represents it by up to sixteen.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
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
# The first two principal components of the activations on held-out images. They show
# only a part of the sixteen activations, so the accuracies above say more.

X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

fig, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
for ax, expansion in zip(axes, (1, 4), strict=True):
    model = hidden(expansion).fit(X_train, y_train)
    Z = model.transform(X_test)
    points = PCA(2).fit_transform(Z)
    for digit in range(10):
        shown = y_test == digit
        ax.scatter(*points[shown].T, s=14, color=f"C{digit}", label=str(digit))
    ax.set(
        title=f"expansion {expansion}: {Z.shape[1]} activations",
        xlabel="first principal component",
        ylabel="second principal component",
    )
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right", title="digit")
plt.show()

# %%
# The columns have names, which ``set_output`` and feature importances use.

print(*model[0].get_feature_names_out()[:4])
