"""Images read and preprocessed in threads, one batch ahead of the model."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from sklearn_fpe.embeddings._images import (
    UnreadableImageError,
    content_digest,
    decode,
    read_item,
)

_MAX_THREADS = 8


@dataclass(frozen=True)
class Prepared:
    """An image that was read.

    `key` is its content, or its position where no cache is kept. `vector` is its
    embedding if the cache has it; otherwise `pixels`, (3, height, width), are the input
    of the model, but None if the batch before computes the same image. An unreadable
    image has an `error` alone.
    """

    key: str | int | None = None
    vector: np.ndarray | None = None
    pixels: torch.Tensor | None = None
    error: UnreadableImageError | None = None


@contextmanager
def prepared_batches(images, positions, batch_size, encoder, cache):
    """Prepare the images of a range of positions; give an iterator over the batches.

    The iterator yields the positions of a batch, a slice, and a list of `Prepared`.
    While the caller handles a batch, threads prepare the next one. What they return
    does not depend on their number or their order. An error stops them after the
    images that they have begun.
    """
    lock = threading.Lock()
    # As many threads as the caller allows torch; decoding gains little from more.
    n_threads = min(_MAX_THREADS, batch_size, torch.get_num_threads())
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="images")
    starts = range(0, len(positions), batch_size)
    batches = [positions[start : start + batch_size] for start in starts]

    def submit(batch, in_work):
        return [
            pool.submit(_prepare, images, i, lock, encoder, cache, in_work)
            for i in batch
        ]

    def iterate():
        ahead = submit(batches[0], frozenset())
        for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
            prepared = [future.result() for future in ahead]
            in_work = {p.key for p in prepared if p.pixels is not None}
            ahead = submit(following, in_work)
            yield slice(batch.start, batch.stop), prepared

    try:
        yield iterate()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(images, i, lock, encoder, cache, in_work):
    """Read image `i`, and preprocess it unless its key is cached or in work."""
    try:
        source, name = read_item(images, i, lock)
        key = i if cache is None else content_digest(source)
        if key in in_work:
            return Prepared(key)
        if cache is not None and (vector := cache.get(key)) is not None:
            return Prepared(key, vector)
        image = decode(source, name)
    except UnreadableImageError as exc:
        return Prepared(error=exc)
    try:
        return Prepared(key, pixels=encoder.preprocess(image))
    except Exception as exc:
        exc.add_note(f"This was raised while {name} was preprocessed.")
        raise
