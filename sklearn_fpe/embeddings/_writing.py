"""Embeddings of many images, written to shards."""

import hashlib
import json
import os
import time
import warnings
from contextlib import closing
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_scalar

from sklearn_fpe._optional import import_optional
from sklearn_fpe.datasets import open_shards
from sklearn_fpe.embeddings._folder import list_images
from sklearn_fpe.embeddings._images import UnreadableImageError, check_images

FORMAT = 1
"""Version of the manifest."""

RESERVED = ("position", "image_path")
"""Columns of the metadata that are written for all images."""


def write_shards(
    embedder,
    images,
    folder,
    *,
    shard_size=65536,
    dtype="float16",
    metadata=None,
    unreadable="skip",
    progress=None,
    verbose=False,
):
    """Embed images and write the embeddings to a folder of shards.

    The same call continues where an earlier one was stopped, whatever stopped it; only
    the batch that was being computed is computed again. Several processes, also on
    machines that share the folder, may make the same call at the same time: each takes
    the next free shard, and all return when the last shard is finished. Needs the extra
    ``parquet``, and a file system with locks (``flock``).

    Parameters
    ----------
    embedder : CLIPEmbedder
        Embeds the images. Any object will do that has its method ``iter_transform``;
        without ``fingerprint`` its type stands for the model.
    images : str, path-like or sequence of length n_images
        A folder, of which all images at any depth are embedded, sorted by path; or
        images as :meth:`CLIPEmbedder.transform` takes them.
    folder : str or path-like
        Where to write; it is made if it does not exist.
    shard_size : int, default=65536
        Images of a shard, at least 1; those that are left out count.
    dtype : {"float16", "float32"}, default="float16"
        Type in which embeddings are stored.
    metadata : dict or data frame, default=None
        Columns of n_images entries to store beside the embeddings, such as labels.
    unreadable : {"skip", "raise"}, default="skip"
        Whether an image that cannot be read is left out, and named in one warning at
        the end, or raises an error.
    progress : callable, default=None
        Called after every batch as ``progress(n_done, n_images)``; images that are left
        out count as done.
    verbose : bool, default=False
        Whether to print a line for every shard.

    Returns
    -------
    written : :class:`~sklearn.utils.Bunch`
        Contents of the folder now:

        shards : Shards of shape (n_rows, n_features)
            The embeddings, see :func:`~sklearn_fpe.datasets.open_shards`.
        skipped : dict of str
            Why images were left out, by their position in `images`.
        n_embedded : int
            Number of images that this call has embedded.

    Raises
    ------
    ValueError
        If the folder has shards of other images, metadata, settings or another model,
        or embeddings are too large for `dtype`.
    OSError
        If an image (with ``unreadable="raise"``) or the folder cannot be used.
    ImportError
        If pyarrow is not installed.

    See Also
    --------
    sklearn_fpe.datasets.open_shards : Opens the folder as one array.

    Notes
    -----
    The layout is that of clip-retrieval::

        folder/img_emb/img_emb_0.npy          embeddings, (n_rows, n_features)
        folder/metadata/metadata_0.parquet    position, image_path, your columns
        folder/skipped/skipped_0.json         images left out, if there are any
        folder/manifest.json                  what the shards are made from

    A shard that is not finished consists of two hidden files: rows, and a journal with
    a checksum of every batch. Files are synchronised with the disk before they are
    renamed into place, ``img_emb_0.npy`` last, so a shard is complete or absent. An
    image is stored once, whatever stops the process.

    Examples
    --------
    >>> from sklearn_fpe.embeddings import CLIPEmbedder, write_shards
    >>> X = write_shards(CLIPEmbedder(), "pictures", "out").shards  # doctest: +SKIP
    >>> paths = X.column("image_path")  # doctest: +SKIP
    """
    partial = _import_partial()
    check_scalar(shard_size, "shard_size", Integral, min_val=1)
    for name, value, allowed in (
        ("dtype", dtype, ("float16", "float32")),
        ("unreadable", unreadable, ("skip", "raise")),
    ):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
    if isinstance(images, str | os.PathLike):
        images = list_images(images)
    images = check_images(images)
    table = _make_table(images, metadata)
    folder = Path(folder).expanduser()
    _prepare(
        partial,
        folder,
        {
            "format": FORMAT,
            "n_images": len(images),
            "shard_size": int(shard_size),
            "dtype": dtype,
            "metadata": {name: _digest(table[name]) for name in table.column_names},
            "embedder": _fingerprint(embedder),
        },
    )
    shards = []
    for number, start in enumerate(range(0, len(images), int(shard_size))):
        positions = range(start, min(start + int(shard_size), len(images)))
        shards.append(partial.PartialShard(folder, number, positions, dtype))
    writer = _Writer(embedder, images, table, unreadable, progress, verbose)
    n_embedded = writer.write(shards)
    skipped = {}
    for shard in shards:
        skipped |= shard.read_skipped()
    if skipped:
        warnings.warn(
            f"{len(skipped)} images could not be read and were left out: "
            + "; ".join(skipped.values()),
            UserWarning,
            stacklevel=2,
        )
    shards = open_shards(folder / "img_emb", metadata=folder / "metadata")
    return Bunch(shards=shards, skipped=skipped, n_embedded=n_embedded)


def _import_partial():
    """Import what locks files, which only POSIX systems can, and pyarrow."""
    import_optional("pyarrow.parquet")
    try:
        from sklearn_fpe.embeddings import _partial
    except ImportError as error:
        raise ImportError(
            f"write_shards locks files by flock, which this system lacks: {error}."
        ) from error
    return _partial


def _prepare(partial, folder, manifest):
    """Make the folder; check that what it holds is made from the same."""
    (folder / partial.EMBEDDINGS).mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    with partial.locked(folder / ".lock"):
        if path.exists():
            _check_manifest(path, manifest)
            return
        names = [entry.name for entry in folder.iterdir()]
        names += [entry.name for entry in (folder / partial.EMBEDDINGS).iterdir()]
        foreign = [n for n in names if n[0] != "." and n != partial.EMBEDDINGS]
        if foreign:
            raise ValueError(
                f"folder must be empty or written by this function, {str(folder)!r} "
                f"has no manifest.json but {foreign[0]!r}."
            )
        with partial.replaced(path) as file:
            file.write(json.dumps(manifest, indent=1).encode())


class _Writer:
    """Fills shards, and tells the user how far it is."""

    def __init__(self, embedder, images, table, unreadable, progress, verbose):
        self.embedder, self.images, self.table = embedder, images, table
        self.unreadable, self.progress, self.verbose = unreadable, progress, verbose
        self.n_done, self.n_done_of = 0, {}

    def write(self, shards):
        """Fill all shards that are not finished; return the number of embeddings.

        Shards of other writers are waited for at the end, and taken over from writers
        that have stopped.
        """
        n_embedded = 0
        for wait in (False, True):
            for shard in shards:
                if not shard.finished:
                    with shard.claim(wait) as claimed:
                        if claimed:
                            n_embedded += self._fill(shard)
                            kept = np.array(shard.kept, dtype=np.int64)
                            shard.finish(self.table.take(kept))
                if shard.finished:
                    shard.clean()  # what a stopped writer has left
                    self._note(shard, shard.positions.stop)
        return n_embedded

    def _fill(self, shard):
        """Embed the images of a shard that are not stored; return the number."""
        start, n_stored = time.perf_counter(), len(shard.kept)
        self._note(shard, shard.next)
        if shard.next < shard.positions.stop:
            rest = slice(shard.next, shard.positions.stop)
            with closing(self.embedder.iter_transform(self.images, rest)) as batches:
                for batch, embeddings, unreadable in batches:
                    if unreadable and self.unreadable == "raise":
                        raise UnreadableImageError(next(iter(unreadable.values())))
                    shard.append(embeddings, unreadable)
                    self._note(shard, batch.stop)
                    if self.progress is not None:
                        self.progress(self.n_done, len(self.images))
        n_embedded = len(shard.kept) - n_stored
        if self.verbose:
            seconds = max(time.perf_counter() - start, 1e-9)
            print(
                f"{shard.path.name}: {len(shard.kept)} rows, {len(shard.skipped)} "
                f"images left out, {n_embedded} embedded now, "
                f"{n_embedded / seconds:.0f} a second; "
                f"{self.n_done} of {len(self.images)} images done"
            )
        return n_embedded

    def _note(self, shard, stop):
        """Note that the images of a shard up to `stop` are stored."""
        n_done = stop - shard.positions.start
        self.n_done += n_done - self.n_done_of.get(shard, 0)
        self.n_done_of[shard] = n_done


def _make_table(images, metadata):
    """Return the metadata as a table, whose types are then those of all shards."""
    columns = {"position": np.arange(len(images))}
    is_plain = isinstance(images, list | tuple | np.ndarray)
    if is_plain and all(isinstance(image, str | os.PathLike) for image in images):
        columns["image_path"] = [str(os.fspath(image)) for image in images]
    for name in () if metadata is None else metadata:
        if not isinstance(name, str) or name in RESERVED:
            raise ValueError(
                f"Columns of metadata must be named by strings other than "
                f"{' and '.join(RESERVED)}, got {name!r}."
            )
        columns[name] = np.asarray(metadata[name])
        if columns[name].shape != (len(images),):
            raise ValueError(
                f"metadata[{name!r}] must have one entry for every image, shape "
                f"({len(images)},), got shape {columns[name].shape}."
            )
    arrow = import_optional("pyarrow")
    for name, values in columns.items():
        try:
            columns[name] = arrow.array(values)
        except (arrow.ArrowException, TypeError, ValueError) as error:
            raise ValueError(
                f"metadata[{name!r}] must have entries of one type that Parquet can "
                f"store: {error}"
            ) from error
    return arrow.table(columns)


def _digest(column):
    """Return a digest of a column of a table."""
    digest = hashlib.sha256(str(column.type).encode())
    for start in range(0, len(column), 2**16):
        digest.update(repr(column.slice(start, 2**16).to_pylist()).encode())
    return digest.hexdigest()


def _fingerprint(embedder):
    kind = type(embedder)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return f"{name} {embedder.fingerprint()}" if hasattr(kind, "fingerprint") else name


def _check_manifest(path, manifest):
    """Check that the shards of a folder are made from what is given now."""
    try:
        stored = json.loads(path.read_text())
        differing = [name for name in manifest if stored[name] != manifest[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error!r}.") from error
    if differing:
        name = differing[0]
        raise ValueError(
            f"folder must hold shards of the same images, metadata, settings and model "
            f"as before; {str(path)!r} has another {', '.join(differing)}: "
            f"{stored[name]!r}, now {manifest[name]!r}. Write to another folder."
        )
