"""
From a folder of images to a cross-validated classifier
=======================================================

Build one pipeline from image files to predictions: CLIP embeddings, and a small
expanded network on top. Cross-validation chooses the expansion and whether the network
has a skip connection.
"""

# %%
# The images
# ----------
#
# Use any folder that has one subfolder per class, such as ``pictures/red
# circle/0.png``. This page has to build without a download, so
# ``examples/_toy_clip.py`` draws the images: shapes in five colours, with random sizes
# and positions, on a noisy background.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from _toy_clip import draw_pictures, train_clip
from PIL import Image
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_fpe import FPEClassifier
from sklearn_fpe.embeddings import CLIPEmbedder, load_image_folder

folder = tempfile.TemporaryDirectory()
pictures = Path(folder.name, "pictures")
rng = np.random.default_rng(0)
draw_pictures(pictures, rng)

images = load_image_folder(pictures)
print(f"{len(images.paths)} images of {len(images.classes)} classes")

# %%
# :func:`~sklearn_fpe.embeddings.load_image_folder` returns paths and labels, and lists
# in ``skipped`` every file that it left out. The images stay files until they are
# embedded.

fig, axes = plt.subplots(3, 5, figsize=(6.5, 4.4), layout="constrained")
for ax, i in zip(axes.flat, rng.permutation(len(images.paths)), strict=False):
    ax.imshow(Image.open(images.paths[i]))
    ax.set_title(images.labels[i], fontsize="small")
    ax.set_axis_off()
plt.show()

# %%
# The model
# ---------
#
# With a network connection and a real CLIP checkpoint, this section is one line::
#
#     model = "openai/clip-vit-base-patch32"
#
# The rest of the page stays the same. Here a very small CLIP is trained for a few
# seconds on other drawings and their captions, and saved to a folder in the format of a
# real checkpoint. Its accuracy says nothing about a real CLIP.

model = train_clip(Path(folder.name, "clip"), rng)

# %%
# The pipeline
# ------------
#
# The pipeline has two caches. The embedder caches embeddings in one SQLite file, under
# the content of the image file and of the model, so the search embeds each image once.
# The classifier caches the dense warm-up, because it is the same for all expansions;
# this cache needs an integer ``random_state``.

cache = Path(folder.name, "cache")
pipeline = make_pipeline(
    CLIPEmbedder(model, memory=cache / "embeddings"),
    FPEClassifier((4,), max_iter=25, memory=str(cache / "warm-up"), random_state=0),
)

# %%
# ``GridSearchCV`` accepts paths and labels like any arrays. ``expansion=1`` is the
# dense network with the same number of parameters.

train, test, y_train, y_test = train_test_split(
    images.paths, images.labels, stratify=images.labels, random_state=0
)
grid = {
    "fpeclassifier__expansion": [1, 2, 4],
    "fpeclassifier__skip_connection": [False, True],
}
search = GridSearchCV(pipeline, grid, cv=3)
search.fit(train, y_train)

# %%
# Score the best pipeline on a test set that the search has not seen:

print("best:", search.best_params_)
print(f"cross-validated accuracy {100 * search.best_score_:.1f} %")
print(f"test accuracy {100 * search.score(test, y_test):.1f} %")

# %%
# Plot the accuracy of all candidates, with the standard deviation over the folds:

fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
found = search.cv_results_
expansions = grid["fpeclassifier__expansion"]
for skip in grid["fpeclassifier__skip_connection"]:
    rows = found["param_fpeclassifier__skip_connection"] == skip
    mean, std = (100 * found[f"{name}_test_score"][rows] for name in ("mean", "std"))
    ax.errorbar(expansions, mean, std, marker="o", capsize=3, label=skip)
ax.set_xscale("log", base=2)
ax.set_xticks(expansions, [str(a) for a in expansions])
ax.set(
    xlabel="expansion (1: dense)",
    ylabel="cross-validated accuracy (%)",
    title="Equal non-zero parameters, 4 parents",
)
ax.legend(title="skip connection")
plt.show()

# %%
# Predict the classes of image files.

for path, label in zip(test[:4], search.predict(test[:4]), strict=True):
    print(f"{Path(path).parent.name}/{Path(path).name}: {label}")

folder.cleanup()
