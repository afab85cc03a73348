"""
Regression: a curve that a few neurons can follow
=================================================

Predict a number with a linear model and with three networks that have the same number
of parameters: a dense network, an expanded network, and an expanded network with a skip
connection.
"""

# %%
# The target is Friedman's function of five columns: products, a square and two linear
# terms. Fifteen more columns are noise. The estimator standardises the columns and the
# target.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_friedman1
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_score, train_test_split

from sklearn_fpe import FPERegressor

X, y = make_friedman1(2000, n_features=20, noise=1.0, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

model = FPERegressor((4,), skip_connection=True, random_state=0).fit(X_train, y_train)
print(f"{model.n_nonzero_} parameters, R² {model.score(X_test, y_test):.3f}")

# %%
# R² is the share of the variance that a model explains: a perfect prediction has 1, a
# constant prediction has 0. No model can get beyond about 0.96 here, because of the
# noise.

models = {
    "ridge regression (21)": RidgeCV(),
    "dense network (89)": FPERegressor((4,), expansion=1, random_state=0),
    "expanded network (89)": FPERegressor((4,), random_state=0),
    "with skip (89)": FPERegressor((4,), skip_connection=True, random_state=0),
}
scores = {name: cross_val_score(m, X, y, cv=5) for name, m in models.items()}
for name, found in scores.items():
    print(f"{name:26} {found.mean():.3f} ± {found.std():.3f}")

fig, ax = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for row, found in enumerate(scores.values()):
    ax.plot(found, [row] * len(found), "o", color="C0", alpha=0.4)
    ax.plot(found.mean(), row, "|", color="C0", markersize=22)
ax.set_yticks(range(len(scores)), scores)
ax.invert_yaxis()
ax.set(
    xlabel="R² of five folds and their mean (higher is better)",
    title="Friedman's function (number of parameters)",
)
ax.grid(axis="x", alpha=0.3)
plt.show()

# %%
# Which columns does the network use? The first three act in a product and a square, so
# the hidden layer reads them. The next two act linearly, so the skip connection carries
# them. The noise columns keep few weights, or small ones.

hidden = abs(model.coefs_[0].toarray()).sum(axis=1)
skip = abs(model.skip_coef_.toarray()).sum(axis=1)
fig, axes = plt.subplots(2, figsize=(6.5, 3.8), layout="constrained", sharex=True)
titles = ("first layer: sum of |weights|", "skip connection: |weight|")
for ax, weights, title in zip(axes, (hidden, skip), titles, strict=True):
    ax.bar(np.arange(20), weights, color=["C1"] * 5 + ["C7"] * 15)
    ax.set_title(title, fontsize="medium")
axes[1].set_xticks(range(20))
axes[1].set_xlabel("column (orange: part of the function)")
plt.show()

# %%
# Several targets are the columns of ``y``; they share the hidden layer.

both = np.column_stack([y_train, np.abs(y_train - y_train.mean())])
model = FPERegressor((8,), random_state=0).fit(X_train, both)
print("predictions of shape", model.predict(X_test).shape)
