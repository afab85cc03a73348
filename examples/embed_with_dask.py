"""
Embedding many images with Dask
===============================

Distribute the embedding over processes and machines, because it is the expensive step
and each image is embedded independently of the others. This page shows two ways. In the
first, Dask embeds the partitions of a data frame. In the second, workers fill one
folder together and can continue after an interruption. Both ways end in a folder of
shards.
"""

# %%
# The images
# ----------
#
# This page has to build without a download, so it draws circles in five colours and
# uses a very small CLIP with random weights. With a real checkpoint, ``model`` is a
# name such as ``"openai/clip-vit-base-patch32"``, and nothing else changes.

import logging
import tempfile
from pathlib import Path

import dask.dataframe as dd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import transformers
from dask.distributed import Client, LocalCluster, get_worker
from PIL import Image, ImageDraw
from sklearn.model_selection import train_test_split

from sklearn_fpe import FPEClassifier
from sklearn_fpe.datasets import open_shards
from sklearn_fpe.embeddings import CLIPEmbedder, load_image_folder, write_shards

COLORS = ("crimson", "seagreen", "royalblue", "gold", "white")


def draw_images(folder, n_images=400):
    """Draw a circle of one colour on every image."""
    rng = np.random.default_rng(0)
    for i in range(n_images):
        color = COLORS[i % len(COLORS)]
        noise = rng.integers(0, 140, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        x, y = rng.uniform(9, 23, 2)
        box = (x - 7, y - 7, x + 7, y + 7)
        ImageDraw.Draw(image).ellipse(box, fill=color)
        (folder / color).mkdir(parents=True, exist_ok=True)
        image.save(folder / color / f"{i:03}.png")


def save_model(folder):
    """Save a CLIP in the format of a real checkpoint."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.CLIPConfig(
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        text_config=tower | {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 15},
        projection_dim=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


# %%
# A data frame, partition by partition
# ------------------------------------
#
# A partition is a data frame of paths and labels; ``embed`` adds a column of
# embeddings. Pickles of the embedder do not contain the model, so each worker keeps one
# embedder, which loads the model once.


def embed(frame, model):
    """Embed the images of a partition."""
    worker = get_worker()
    if not hasattr(worker, "embedder"):
        worker.embedder = CLIPEmbedder(model, device="cpu")
    vectors = worker.embedder.transform(frame["image_path"])
    return frame.assign(embedding=list(vectors))


def embed_frame(images, model, folder):
    """Write one Parquet file for every partition."""
    frame = pd.DataFrame({"image_path": images.paths, "label": images.labels})
    partitions = dd.from_pandas(frame, npartitions=8)
    meta = {**frame.dtypes, "embedding": object}
    embedded = partitions.map_partitions(embed, str(model), meta=meta)
    schema = pa.schema(
        {
            "image_path": pa.string(),
            "label": pa.string(),
            "embedding": pa.list_(pa.float32()),
        }
    )
    embedded.to_parquet(folder, schema=schema, write_index=False)


# %%
# Workers that fill one folder
# ----------------------------
#
# Every worker makes the same call of :func:`~sklearn_fpe.embeddings.write_shards`. Each
# worker takes the next shard that no other worker has taken. If a worker is lost, its
# finished batches stay on the disk, and another worker or a later call continues from
# there.


def fill_folder(client, images, model, folder):
    """Let all workers write shards; return how many images each has embedded."""

    def write(paths, labels):
        embedder = CLIPEmbedder(str(model), device="cpu")
        metadata = {"label": labels}
        written = write_shards(
            embedder, paths, folder, shard_size=50, metadata=metadata
        )
        return written.n_embedded

    workers = list(client.scheduler_info()["workers"])
    calls = [
        client.submit(write, images.paths, images.labels, workers=[w], pure=False)
        for w in workers
    ]
    return client.gather(calls)


# %%
# Guard the code that starts the workers by ``if __name__ == "__main__"``, because
# workers are new processes that import this script.

if __name__ == "__main__":
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    draw_images(folder / "pictures")
    save_model(folder / "clip")
    images = load_image_folder(folder / "pictures")
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        embed_frame(images, folder / "clip", folder / "frame")
        n_embedded = fill_folder(client, images, folder / "clip", folder / "shards")
        print(f"{sum(n_embedded)} images embedded by {len(n_embedded)} workers")
        again = fill_folder(client, images, folder / "clip", folder / "shards")
        print(f"the same call again: {sum(again)} images")

# %%
# Plot one image of each class:

if __name__ == "__main__":
    labels = list(images.labels)
    fig, axes = plt.subplots(1, len(COLORS), figsize=(6.5, 1.7), layout="constrained")
    for ax, label in zip(axes, COLORS, strict=True):
        ax.imshow(Image.open(images.paths[labels.index(label)]))
        ax.set_title(label)
        ax.set_axis_off()
    plt.show()

# %%
# The fit
# -------
#
# Open each folder as one array whose rows stay in their files. The labels are a column
# beside the embeddings, and a subset of the rows keeps its labels.

if __name__ == "__main__":
    for path in (folder / "frame", folder / "shards" / "img_emb"):
        X = open_shards(path)
        train, test = train_test_split(X, random_state=0)
        model = FPEClassifier((8,), max_iter=30, random_state=0)
        model.fit(train, train.column("label"))
        accuracy = model.score(test, test.column("label"))
        print(f"{path.name}: {X}, columns {X.columns}, accuracy {accuracy:.2f}")
    temporary.cleanup()
