"""The transformer from images to CLIP embeddings."""

import os
import warnings
from contextlib import closing
from numbers import Integral
from typing import ClassVar

import joblib
import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_fpe._engine._context import readable_memory_errors
from sklearn_fpe._estimators._compat import fit_context
from sklearn_fpe._estimators._parameters import resolve_device
from sklearn_fpe.embeddings._batches import prepared_batches
from sklearn_fpe.embeddings._cache import file_digest, model_key, open_cache
from sklearn_fpe.embeddings._checkpoint import ImageEncoder, resolve_checkpoint
from sklearn_fpe.embeddings._images import check_images


class CLIPEmbedder(
    ClassNamePrefixFeaturesOutMixin,
    CallbackSupportMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Embed images with the frozen image encoder of a CLIP model.

    .. math:: z = \frac{W f(x)}{\lVert W f(x) \rVert_2}

    with the vision transformer :math:`f` and the projection :math:`W` of a checkpoint
    of CLIP [1]_, or with the encoder of SigLIP, which has no projection. Images with
    similar content have similar embeddings, so that a small classifier on top needs few
    labelled images. `fit` only checks its input, because nothing is learned, and
    `transform` may be called without it. Needs the extra ``clip``.

    Parameters
    ----------
    model : str or path-like, default="openai/clip-vit-base-patch32"
        Folder of a checkpoint in the format of Hugging Face ``transformers``, or its
        name on the Hugging Face Hub. It is loaded when the first image has to be
        embedded, and kept until the estimator is freed; clones and pickles do not
        contain it. Code that comes with a checkpoint is never run.
    revision : str or None, default=None
        Branch, tag or commit on the hub; None is the default branch. The commit is
        looked up once per estimator.
    local_files_only : bool, default=False
        Never contact the hub: use what was downloaded before.
    batch_size : int, default=64
        Images per forward pass, at least 1; lower it if memory runs out. At most two
        preprocessed batches are in memory: threads prepare one, the model embeds one.
    device : str or torch.device, default="auto"
        Where the model runs; ``"auto"`` is CUDA if there is one, else the CPU.
    dtype : {"float32", "float16", "bfloat16", "auto"}, default="float32"
        Precision of the forward pass; ``"auto"`` is that of the checkpoint. The
        embeddings are float32 in any case.
    normalize : bool, default=True
        Whether embeddings are scaled to length 1.
    on_error : {"raise", "nan"}, default="raise"
        What to do about an image that cannot be read. ``"raise"`` stops with an error
        that names it. ``"nan"`` fills its row with NaN and names all such images in
        one warning. To leave them out with their labels, use
        ``load_image_folder(path, unreadable="skip")``.
    memory : str, path-like, joblib.Memory or None, default=None
        Folder of a cache, one SQLite file ``embeddings.sqlite``; of a
        :class:`joblib.Memory`, its ``location``. The file contains one float32 vector
        per image, before normalisation, and the SHA-256 of the weight files of a
        `model` that is a folder. Nothing in it is run or unpickled, but whoever may
        write to it may alter embeddings. Threads and processes may share it.

        The key is the content of the image (the bytes of a file, the pixels of an image
        in memory), the model (its commit on the hub, or the content of the files in its
        folder), `dtype`, and the versions of ``transformers`` and Pillow, which do the
        preprocessing. A stored embedding is returned to the bit, in whatever subset and
        order it is asked for, so a grid search embeds each image once. If nothing is
        left to compute, the model is not loaded. A damaged entry is computed again; a
        damaged file is an error until you delete it.

    See Also
    --------
    load_image_folder : Paths and labels of a folder with one folder per class.

    Notes
    -----
    **Images.** Animations give their first frame. Images are turned upright by their
    EXIF orientation, transparency is laid on white, grey and palette images become
    RGB, and 16-bit grey is scaled to 8 bits. The preprocessing of the checkpoint (size,
    crop, mean and standard deviation) follows, always with Pillow.

    **Limits.** An image of more than 2\ :sup:`26` (67 million) pixels, a side more than
    200 times the other, or a file of more than 1 GiB counts as unreadable before it is
    decoded, because a small file could ask for gigabytes. So do PostScript, which would
    have to be run, and anything but a regular file, such as a pipe.

    **Reproducibility.** Without `memory`, the same image in batches of different size
    may differ in the last bits, as matrix products do. The number of threads that
    prepare images, at most ``torch.get_num_threads()``, changes nothing.

    **Progress.** The callbacks of :mod:`sklearn.callback`, see `set_callbacks`, are
    called during a `fit`. So `fit_transform` reports its batches, also inside the `fit`
    of a pipeline or a search, and `transform` is silent; both give the same embeddings.
    A callback cannot stop the embedding, because every row is needed.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021, arXiv:2103.00020.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_fpe.embeddings import CLIPEmbedder, load_image_folder
    >>> pipeline = make_pipeline(
    ...     CLIPEmbedder(memory="embeddings"), StandardScaler(), LogisticRegression()
    ... )  # nothing is loaded or written yet
    >>> images = load_image_folder("pictures")  # doctest: +SKIP
    >>> pipeline.fit(images.paths, images.labels)  # doctest: +SKIP
    """

    _parameter_constraints: ClassVar[dict] = {
        "model": [str, os.PathLike],
        "revision": [str, None],
        "local_files_only": ["boolean"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "dtype": [StrOptions({"float32", "float16", "bfloat16", "auto"})],
        "normalize": ["boolean"],
        "on_error": [StrOptions({"raise", "nan"})],
        "memory": [str, os.PathLike, joblib.Memory, None],
    }

    def __init__(
        self,
        model="openai/clip-vit-base-patch32",
        *,
        revision=None,
        local_files_only=False,
        batch_size=64,
        device="auto",
        dtype="float32",
        normalize=True,
        on_error="raise",
        memory=None,
    ):
        self.model = model
        self.revision = revision
        self.local_files_only = local_files_only
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.normalize = normalize
        self.on_error = on_error
        self.memory = memory

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters and the form of `X`; open and load nothing.

        Parameters
        ----------
        X : sequence of length n_samples
            Images, as `transform` takes them.
        y : object
            Ignored.

        Returns
        -------
        self : CLIPEmbedder
            The estimator itself.
        """
        check_images(X)
        context = self._init_callback_context()
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        context.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes={}
        )
        return self

    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : sequence of length n_samples
            Paths, PIL images or uint8 arrays of shape (height, width) or (height,
            width, 1, 3 or 4), mixed at will, in a list, an array, a series, or any
            other object with ``__len__`` and ``__getitem__``, such as a column of a
            Hugging Face data set, which is read item by item; or one uint8 array with a
            first axis of n_samples. Channels are grey, RGB or RGB with alpha, values 0
            to 255. Tensors may have them first, too.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features_out), dtype float32
            The embeddings; NaN for an unreadable image if ``on_error="nan"``.

        Raises
        ------
        OSError
            If an image (with ``on_error="raise"``) or the model cannot be read.
        ValueError, TypeError
            If `X` holds something else than images, or a parameter is out of range.
        MemoryError
            If the device has too little memory.
        """
        self._validate_params()
        return self._embed(check_images(X))

    def iter_transform(self, X, rows=None):
        """Embed images batch by batch, so that each batch can be stored at once.

        Unreadable images are reported to the caller, whatever `on_error` is.

        Parameters
        ----------
        X : sequence of length n_samples
            Images, as `transform` takes them.
        rows : slice, default=None
            Which of them to embed, by a slice of step 1; None: all.

        Yields
        ------
        batch : slice
            Positions of up to `batch_size` images in X.
        Z : ndarray of shape (n_batch, n_features_out), dtype float32
            Their embeddings, a row of NaN for an unreadable image.
        unreadable : dict of str
            Why images of the batch cannot be read, by their positions in X.

        See Also
        --------
        write_shards : Stores the batches in files and continues after a stop.
        """
        self._validate_params()
        images = check_images(X)
        positions = range(len(images))[rows or slice(None)]
        if positions.step != 1:
            raise ValueError(f"rows must be a slice of step 1, got {rows}.")
        if positions:
            yield from self._batches(images, positions, tolerant=True)

    def fingerprint(self):
        """Digest of all that an embedding depends on but the image.

        Returns
        -------
        digest : str
            Of the model (its commit, or the content of its files), `dtype`,
            `normalize`, and the versions of the packages that do the preprocessing.
        """
        self._validate_params()
        key = model_key(self._resolve(), self.dtype, file_digest)
        return f"{key}-{'normalized' if self.normalize else 'raw'}"

    @fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """Embed images, and report each batch to the callbacks.

        Parameters
        ----------
        X : sequence of length n_samples
            Images, as `transform` takes them.
        y : object
            Ignored.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features_out), dtype float32
            The embeddings.
        """
        images = check_images(X)
        n_batches = -(-len(images) // self.batch_size)
        context = self._init_callback_context(max_subtasks=n_batches)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        embeddings = self._embed(images, context)
        context.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes={}
        )
        return embeddings

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self):
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in {"_resolved", "_encoder"}}

    @property
    def _n_features_out(self):
        self._validate_params()
        return self._resolve().n_features()

    def _embed(self, images, context=None):
        """Embeddings of all images, batch by batch."""
        parts, unreadable = [], {}
        tolerant = self.on_error == "nan"
        with closing(self._batches(images, range(len(images)), tolerant, context)) as b:
            for _, embeddings, errors in b:
                parts.append(embeddings)
                unreadable |= errors
        if unreadable:
            warnings.warn(
                f"{len(unreadable)} images could not be read; their rows are NaN: "
                + "; ".join(unreadable.values()),
                UserWarning,
                stacklevel=4,
            )
        return np.concatenate(parts)

    def _batches(self, images, positions, tolerant, context=None):
        """Yield positions, embeddings and messages of errors, see `iter_transform`."""
        checkpoint = self._resolve()
        encoder = self._hold_encoder(checkpoint)
        is_memory = isinstance(self.memory, joblib.Memory)
        folder = self.memory.location if is_memory else self.memory
        vectors = {}
        with (
            open_cache(folder, checkpoint, self.dtype) as cache,
            prepared_batches(
                images, positions, self.batch_size, encoder, cache
            ) as batches,
        ):
            for batch, prepared in batches:
                if context is not None:
                    task = context.subcontext(task_name="batch")
                    task.call_on_fit_task_begin(estimator=self, X=images[batch])
                errors = [image.error for image in prepared]
                first_error = next(filter(None, errors), None)
                if first_error is not None and not tolerant:
                    raise first_error
                previous, vectors = vectors, self._compute(prepared, encoder, cache)
                # An image without pixels equals one of the batch before.
                known = previous | vectors
                yield (
                    batch,
                    self._assemble([known.get(p.key) for p in prepared], checkpoint),
                    {i: str(e) for i, e in enumerate(errors, batch.start) if e},
                )
                if context is not None:
                    task.call_on_fit_task_end(estimator=self, X=images[batch])

    def _compute(self, prepared, encoder, cache):
        """Embeddings of a batch by key: from the cache, or computed and kept there."""
        kept = {p.key: p.vector for p in prepared if p.vector is not None}
        pixels = {p.key: p.pixels for p in prepared if p.pixels is not None}
        if not pixels:
            return kept
        remedy = f"Lower batch_size (it is {self.batch_size!r})"
        with readable_memory_errors(self.device, remedy):
            encoder.load(resolve_device(self.device))
            vectors = encoder.encode(list(pixels.values()))
        computed = dict(zip(pixels, vectors, strict=True))
        if cache is not None:
            cache.put(computed)
        return kept | computed

    def _assemble(self, rows, checkpoint):
        """Return embeddings as a matrix, NaN where there is none."""
        n_features = next((len(row) for row in rows if row is not None), None)
        missing = np.full(n_features or checkpoint.n_features(), np.nan, np.float32)
        embeddings = np.stack([missing if row is None else row for row in rows])
        if self.normalize:
            norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
            embeddings /= np.maximum(norms, np.finfo(np.float32).tiny)
        return embeddings

    def _resolve(self):
        """Find the checkpoint as it is now: a folder may change, a commit does not."""
        asked = (self.model, self.revision, self.local_files_only)
        known, checkpoint = getattr(self, "_resolved", (None, None))
        if known != asked:
            checkpoint = resolve_checkpoint(*asked)
            if checkpoint.commit is not None:
                self._resolved = (asked, checkpoint)
        return checkpoint

    def _hold_encoder(self, checkpoint):
        """Hand out the encoder that is held, or one that has loaded nothing yet."""
        wanted = (checkpoint, self.dtype, self.device)
        if getattr(self, "_encoder", (None, None))[0] != wanted:
            # Two models need not fit: this lets go of one before the next is loaded.
            self._encoder = wanted, ImageEncoder(checkpoint, self.dtype)
        return self._encoder[1]
