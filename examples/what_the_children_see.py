"""
What the children see
=====================

A hidden neuron of a small network has to represent several features at once, and they
interfere. Expansion divides the neuron's inputs among children, so that each represents
fewer features. This example compares the first layers of a dense network and of
expanded networks.
"""

# %%
# Fit a dense and an expanded network with the same number of non-zero parameters on 8×8
# images of digits. Standardise the pixels beforehand, so that weights can be compared.
# The expanded network has a random split, the same for all neurons, and is pruned once,
# at the split.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier
from sklearn_fpe.inspection import (
    ChildInputsDisplay,
    InterferenceDisplay,
    feature_capacity,
    mean_cosine_similarity,
    shared_inputs,
)

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)


def fit(expansion, **kwargs):
    """Fit four parent neurons, each with `expansion` children."""
    model = FPEClassifier(
        (4,), expansion=expansion, standardize=False, random_state=0, **kwargs
    )
    return model.fit(X_train, y_train)


dense, expanded = fit(1), fit(4, split="shared", prune="magnitude")
for name, model in {"dense": dense, "expanded": expanded}.items():
    print(f"{name:9} {model.n_nonzero_} parameters, ", end="")
    print(f"test accuracy {100 * model.score(X_test, y_test):.1f} %")

# %%
# Pruning removes more weights from some parents than from others, and may remove whole
# children. Select the neuron with the most children left:

parents = expanded.module_.parents[0].numpy()
neuron = np.bincount(parents).argmax()
print(f"children of each parent: {np.bincount(parents)}")

# %%
# In the dense network this neuron reads the whole image.

ChildInputsDisplay.from_estimator(dense, neuron=neuron, image_shape=(8, 8))
plt.show()

# %%
# Its children share no pixel. Grey pixels went to a sibling, or their weight was pruned
# to pay for the copies of the outgoing weights.

# sphinx_gallery_thumbnail_number = 2
ChildInputsDisplay.from_estimator(expanded, neuron=neuron, image_shape=(8, 8))
plt.show()

# %%
# With ``split="contiguous"`` a child gets neighbouring columns, here rows of pixels.

contiguous = fit(4, split="contiguous", prune="magnitude")
ChildInputsDisplay.from_estimator(contiguous, neuron=neuron, image_shape=(8, 8))
plt.show()

# %%
# With ``split="learned"``, the default, every child starts with all pixels, and gradual
# pruning decides which pixels it keeps. Siblings may then share pixels;
# :func:`~sklearn_fpe.inspection.shared_inputs` counts them.

learned = fit(4, split="learned", prune="gradual")
ChildInputsDisplay.from_estimator(learned, neuron=neuron, image_shape=(8, 8))
plt.show()
print(f"inputs that siblings share: {shared_inputs(learned):.2f}")

# %%
# Two measures quantify the interference. The *capacity* of an input is the share of its
# direction that no other input uses. It is 1 if no other input is read in a similar
# way, so a curve further to the right is better. The *cosine similarity* of two neurons
# is 1 if they read the same inputs in the same proportions, and 0 if they have no input
# in common.

models = {"dense": dense, "shared split": expanded, "learned split": learned}
InterferenceDisplay.from_estimators(models)
plt.show()

# %%
# Both measures are also available as functions.

for name, model in models.items():
    capacity = feature_capacity(model).mean()
    similarity = mean_cosine_similarity(model)
    print(f"{name:13} capacity {capacity:.3f}, similarity {similarity:.3f}")
