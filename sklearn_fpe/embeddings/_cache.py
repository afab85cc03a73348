"""One joblib `Memory` entry per image, so that overlapping subsets share their work."""

import hashlib
import json

import numpy as np

from sklearn_fpe.embeddings._optional import optional_version

# Bytes of a fixed order load faster than a pickled array.
_DTYPE = np.dtype("<f4")


def _recall(key, vector):
    """Give back `vector`, bytes that `Memory` keeps under `key` alone.

    Called without a vector, it runs only where nothing is kept: a miss.
    """
    if vector is None:
        raise KeyError(key)
    return vector


class EmbeddingCache:
    """Embeddings before normalisation, by model and by content of the image.

    Parameters
    ----------
    memory : joblib.Memory
        Where the embeddings are kept.
    checkpoint : Checkpoint
        The model: its commit, or the digests of its files.
    dtype : str
        The precision of the forward pass.
    """

    def __init__(self, memory, checkpoint, dtype):
        # What decodes and resizes the images is part of the preprocessing.
        parts = [
            checkpoint.identity(memory),
            dtype,
            *(f"{p} {optional_version(p)}" for p in ("transformers", "pillow")),
        ]
        self._model_key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        # verbose=0: a Memory made with its default would print one line per image.
        self._recall = memory.cache(
            _recall, ignore=["vector"], verbose=0, mmap_mode=None
        )

    def get(self, image_key):
        """Kept embedding, ndarray of shape (n_features_out,), or None."""
        try:
            kept = self._recall(f"{self._model_key}-{image_key}", None)
        except KeyError:
            return None
        return np.frombuffer(kept, dtype=_DTYPE)

    def put(self, image_key, vector):
        """Keep an embedding."""
        kept = vector.astype(_DTYPE, copy=False).tobytes()
        self._recall(f"{self._model_key}-{image_key}", kept)
