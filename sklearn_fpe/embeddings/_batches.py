"""Images read and preprocessed in threads, one batch ahead of the model."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import gen_batches

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

    Parameters
    ----------
    key : str or int or None
        Its content, or its position where no cache is kept; None if it is unreadable.
    vector : ndarray of shape (n_features_out,) or None
        Its embedding if the cache has it.
    pixels : torch.Tensor of shape (3, height, width) or None
        What the model needs otherwise; None if the batch before computes the same.
    error : UnreadableImageError or None
        Why it is unreadable.
    """

    key: str | int | None = None
    vector: np.ndarray | None = None
    pixels: torch.Tensor | None = None
    error: UnreadableImageError | None = None


@contextmanager
def prepared_batches(images, positions, batch_size, encoder, cache):
    """Prepare the images of a range of positions; give an iterator over the batches.

    While the caller handles a batch, threads prepare the next one. What they return
    does not depend on their number or their order. An error stops them after the
    images that they have begun.

    Yields
    ------
    batches : iterator of (slice, list of Prepared)
        The positions and the images of each batch.
    """
    lock = threading.Lock()
    # As many threads as the caller allows torch; decoding gains little from more.
    n_threads = min(_MAX_THREADS, batch_size, torch.get_num_threads())
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="images")

    def prepare(i, in_work):
        return _prepare(images, i, lock, encoder, cache, in_work)

    def submit(batch, in_work):
        positions = range(batch.start, batch.stop)
        return [pool.submit(prepare, i, in_work) for i in positions]

    def iterate():
        batches = [
            slice(positions.start + batch.start, positions.start + batch.stop)
            for batch in gen_batches(len(positions), batch_size)
        ]
        ahead = submit(batches[0], frozenset())
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            prepared = [future.result() for future in ahead]
            if following is not None:
                in_work = {p.key for p in prepared if p.pixels is not None}
                ahead = submit(following, in_work)
            yield batch, prepared

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
