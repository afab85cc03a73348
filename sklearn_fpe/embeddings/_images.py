"""Images: which forms are accepted, and how each becomes 8-bit RGB."""

import hashlib
import os
from io import BytesIO
from pathlib import Path

import numpy as np

from sklearn_fpe.embeddings._optional import import_optional


class UnreadableImageError(OSError):
    """An image that cannot be read or decoded; the message names it."""


def check_images(X):
    """Check the form of `X` without opening a file.

    Returns
    -------
    images : sequence
        `X` itself, or an array of its items, that is indexed by position and holds
        paths, PIL images or uint8 arrays only.
    """
    if isinstance(X, str | bytes | os.PathLike) or _is_pil(X):
        raise TypeError(
            f"X must be a sequence of images, got a single {type(X).__name__}: "
            "pass a list with one item."
        )
    images = X if isinstance(X, list | tuple) else _check_array(X)
    if len(images) == 0:
        raise ValueError("X must hold at least one image, got none.")
    for i, image in enumerate(images):
        _check_item(image, i)
    return images


def describe(image, i):
    """Name of image `i` for messages: its position, and its path if it has one."""
    path = f" ({os.fspath(image)!r})" if isinstance(image, str | os.PathLike) else ""
    return f"X[{i}]{path}"


def read_source(image, name):
    """Bytes of the file if `image` is a path, else its RGB pixels as a PIL image."""
    with _Reading(name):
        if isinstance(image, str | os.PathLike):
            return Path(image).read_bytes()
        if isinstance(image, np.ndarray):
            pixels = image[..., 0] if image.shape[2:] == (1,) else image
            image = import_optional("PIL.Image").fromarray(np.ascontiguousarray(pixels))
        return _to_rgb(image)


def decode(source, name):
    """RGB image of what `read_source` returned."""
    if not isinstance(source, bytes):
        return source
    with (
        _Reading(name),
        import_optional("PIL.Image").open(BytesIO(source)) as image,
    ):
        return _to_rgb(image)


def content_digest(source):
    """Digest of what `read_source` returned: equal content, equal digest."""
    if isinstance(source, bytes):
        return f"file-{hashlib.sha256(source).hexdigest()}"
    width, height = source.size
    return f"rgb-{width}-{height}-{hashlib.sha256(source.tobytes()).hexdigest()}"


class _Reading:
    """Turn whatever goes wrong while an image is read into `UnreadableImageError`.

    Decoders raise far more than OSError on damaged files: SyntaxError, struct.error,
    IndexError, and so on.
    """

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, exc, traceback):
        ours = isinstance(exc, Exception) and not isinstance(
            exc, MemoryError | ImportError | Warning
        )
        if ours:
            raise UnreadableImageError(
                f"{self.name} cannot be read as an image: {kind.__name__}: {exc}"
            ) from exc


def _to_rgb(image):
    """Upright 8-bit RGB copy of a PIL image."""
    image = import_optional("PIL.ImageOps").exif_transpose(image)
    Image = import_optional("PIL.Image")
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255: nearly every 16-bit picture would come out white.
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ValueError(
            f"pixels of mode {image.mode!r} have no fixed range; convert them to 8 bits"
        )
    if image.has_transparency_data:
        # The colour below a transparent pixel is arbitrary, so it is not to be seen.
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _is_pil(image):
    return isinstance(image, import_optional("PIL.Image").Image)


def _check_array(X):
    """Items of an array, or of what converts to one (a pandas or polars series)."""
    images = np.asarray(X.to_numpy() if hasattr(X, "to_numpy") else X)
    shape, dtype = images.shape, images.dtype
    if dtype.kind in "OUT":
        # A data frame with one column, as a ColumnTransformer passes it.
        images = images[:, 0] if images.ndim == 2 and shape[1] == 1 else images
        if images.ndim == 1:
            return images
    elif dtype == np.uint8:
        if images.ndim == 3 and shape[2] in {3, 4}:
            raise ValueError(
                f"X of shape {shape} looks like one colour image: pass X[None]. Grey "
                f"images {shape[2]} pixels wide go as (n_samples, height, width, 1)."
            )
        if images.ndim == 3 or (images.ndim == 4 and shape[3] in {1, 3, 4}):
            return images
    raise ValueError(
        "X must be a sequence of paths, PIL images or uint8 arrays, or a uint8 array "
        "of shape (n_samples, height, width) or (n_samples, height, width, 1, 3 or 4); "
        f"got {dtype} of shape {shape}."
    )


def _check_item(image, i):
    if isinstance(image, str | os.PathLike) or _is_pil(image):
        return
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"X[{i}] must be a path, a PIL image or a uint8 array, "
            f"got {type(image).__name__}."
        )
    channels = image.shape[2:]
    right_shape = image.ndim == 2 or channels in {(1,), (3,), (4,)}
    if image.dtype != np.uint8 or not right_shape or 0 in image.shape:
        raise ValueError(
            f"X[{i}] must be a uint8 array (values 0 to 255) of shape (height, width) "
            f"or (height, width, 1, 3 or 4), got {image.dtype} of shape {image.shape}."
        )
