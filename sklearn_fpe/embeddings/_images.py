"""Images: which forms are accepted, and how each becomes 8-bit RGB."""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from sklearn_fpe._optional import import_optional

# Bounds on what one image may cost. Decoding takes up to 12 bytes per pixel; the
# preprocessing scales the short side up, so a long strip grows with its ratio.
MAX_FILE_BYTES = 2**30
MAX_PIXELS = 2**26
MAX_RATIO = 200
# EPS is a program, which Ghostscript would run; of MPEG only the header is read.
_REFUSED_FORMATS = {"EPS", "MPEG"}


class UnreadableImageError(OSError):
    """An image that cannot be read or decoded; the message names it."""


def check_images(X):
    """Check the form of `X` without reading an image.

    Returns a list, tuple, array or `LazySequence`, indexed by position. The items of a
    `LazySequence` are checked when they are read, because reading may mean decoding.
    """
    if isinstance(X, str | bytes | os.PathLike) or _is_pil(X):
        raise TypeError(
            f"X must be a sequence of images, got a single {type(X).__name__}: "
            "pass a list with one item."
        )
    if isinstance(X, torch.Tensor):
        X = _tensor_to_array(X, "X", n_leading=1)
    elif hasattr(X, "to_numpy"):  # of pandas or polars
        X = X.to_numpy()
    if _is_array(X):
        X = _check_array(X)
    elif isinstance(X, Mapping) or not (
        hasattr(X, "__len__") and hasattr(X, "__getitem__")
    ):
        raise ValueError(
            "X must be a sequence of paths, PIL images or uint8 arrays, "
            f"got {type(X).__name__}."
        )
    if len(X) == 0:
        raise ValueError("X must hold at least one image, got none.")
    if not isinstance(X, list | tuple | np.ndarray):
        return LazySequence(X, range(len(X)))
    for i, image in enumerate(X):
        _check_item(image, f"X[{i}]")
    return X


class LazySequence(Sequence):
    """View of the items of a sequence at `positions`, each read when it is asked for.

    The sequence has ``__len__`` and ``__getitem__``, and need not understand slices.
    """

    def __init__(self, items, positions):
        self.items = items
        self.positions = positions

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return LazySequence(self.items, self.positions[i])
        return self.items[self.positions[i]]


def read_item(images, i, lock):
    """Read image `i` of what `check_images` returned; name it by position and path.

    Only the bytes of a file are read outside of `lock`: neither a PIL image nor an
    unknown sequence may be used by two threads at a time.
    """
    name = f"X[{i}]"
    with lock:
        with _reading(name):
            image = images[i]
        image = _check_item(image, name)
        if not isinstance(image, str | os.PathLike):
            return read_source(image, name), name
    name = f"{name} ({str(os.fspath(image))!r})"
    return read_source(image, name), name


def read_source(image, name):
    """Bytes of the file if `image` is a path, else its RGB pixels as a PIL image."""
    with _reading(name):
        if isinstance(image, str | os.PathLike):
            return _read_file(image)
        if isinstance(image, np.ndarray):
            pixels = image[..., 0] if image.shape[2:] == (1,) else image
            image = import_optional("PIL.Image").fromarray(np.ascontiguousarray(pixels))
        return _to_rgb(image)


def decode(source, name):
    """RGB image of what `read_source` returned."""
    if not isinstance(source, bytes):
        return source
    Image = import_optional("PIL.Image")
    with (
        _reading(name),
        Image.open(BytesIO(source), formats=readable_formats()) as image,
    ):
        return _to_rgb(image)


def content_digest(source):
    """Digest of what `read_source` returned: equal content, equal digest."""
    if isinstance(source, bytes):
        return f"file-{hashlib.sha256(source).hexdigest()}"
    width, height = source.size
    return f"rgb-{width}-{height}-{hashlib.sha256(source.tobytes()).hexdigest()}"


def readable_formats():
    """Names of the formats that Pillow decodes without another program."""
    Image = import_optional("PIL.Image")
    stub = import_optional("PIL.ImageFile").StubImageFile
    Image.init()
    return [
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in _REFUSED_FORMATS
        and not (isinstance(factory, type) and issubclass(factory, stub))
    ]


@contextmanager
def _reading(name):
    """Turn whatever goes wrong while an image is read into `UnreadableImageError`.

    Decoders raise far more than OSError on damaged files: SyntaxError, struct.error,
    IndexError, and so on.
    """
    try:
        yield
    except MemoryError as exc:
        raise MemoryError(
            f"{name} does not fit into memory: lower batch_size, or make the image "
            "smaller."
        ) from exc
    except ImportError:
        raise
    except Exception as exc:
        # A warning is raised where the caller's filter makes it an error.
        bomb = import_optional("PIL.Image").DecompressionBombWarning
        if isinstance(exc, Warning) and not isinstance(exc, bomb):
            raise
        raise UnreadableImageError(
            f"{name} cannot be read as an image: {type(exc).__name__}: {exc}"
        ) from exc


def _read_file(path):
    """Read a regular file; anything else may block, or never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{status.st_size} bytes are more than {MAX_FILE_BYTES}")
    return Path(path).read_bytes()


def _check_size(image):
    """Bound the cost of a PIL image before it is decoded."""
    width, height = image.size
    size = f"{width} × {height} pixels"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{size} are more than {MAX_PIXELS}")
    if min(image.size) == 0 or max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(f"{size}: one side is more than {MAX_RATIO} times the other")


def _to_rgb(image):
    """Upright 8-bit RGB copy of a PIL image."""
    _check_size(image)
    image = import_optional("PIL.ImageOps").exif_transpose(image)
    Image = import_optional("PIL.Image")
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255: nearly every 16-bit picture would come out white.
        pixels = np.asarray(image)
        grey = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[pixels == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ValueError(
            f"pixels of mode {image.mode!r} have no fixed range; convert them to 8 bits"
        )
    if image.has_transparency_data:
        # The colour below a transparent pixel is arbitrary, so it is not to be seen.
        layer = _with_alpha(image)
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _with_alpha(image):
    """RGBA copy of an image with any kind of transparency."""
    if image.mode == "La":
        image = image.convert("LA")
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # Pillow reduces the pixels of a 16-bit PNG to 8 bits, but not this colour.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("RGBA")


def _is_pil(image):
    return isinstance(image, import_optional("PIL.Image").Image)


def _is_array(image):
    return hasattr(image, "shape") and hasattr(image, "dtype")


def _tensor_to_array(tensor, name, n_leading=0):
    """Array of a tensor with the channels last; torchvision has them first.

    The first `n_leading` axes count images.
    """
    shape = tuple(tensor.shape)
    if tensor.dtype != torch.uint8:
        raise ValueError(
            f"{name} must be a uint8 tensor (values 0 to 255), got {tensor.dtype} of "
            f"shape {shape}."
        )
    if n_leading and len(shape) == 3 and shape[0] in {3, 4}:
        raise _one_colour_image(shape)
    if len(shape) == n_leading + 3 and shape[n_leading] in {1, 3, 4}:
        if shape[-1] in {1, 3, 4}:
            raise ValueError(
                f"{name} of shape {shape} may have its channels first or last: pass an "
                "array, which has them last."
            )
        tensor = tensor.movedim(n_leading, -1)
    return tensor.detach().cpu().numpy()


def _check_array(X):
    """Check an array, in memory or on disk, whose first axis counts the images."""
    shape, dtype = tuple(X.shape), X.dtype
    if getattr(dtype, "kind", None) in "OUT":
        # A data frame with one column, as a ColumnTransformer passes it.
        X = X[:, 0] if len(shape) == 2 and shape[1] == 1 else X
        if len(X.shape) == 1:
            return X
    elif dtype == np.uint8:
        if len(shape) == 3 and shape[2] in {3, 4}:
            raise _one_colour_image(shape)
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in {1, 3, 4}):
            return X
    raise ValueError(
        "X must be a sequence of paths, PIL images or uint8 arrays, or a uint8 array "
        "of shape (n_samples, height, width) or (n_samples, height, width, 1, 3 or 4); "
        f"got {dtype} of shape {shape}."
    )


def _one_colour_image(shape):
    return ValueError(
        f"X of shape {shape} looks like one colour image: pass X[None]. Grey images of "
        "that shape go as (n_samples, height, width, 1)."
    )


def _check_item(image, name):
    """Return an image as a path, PIL image or array, whose form is checked."""
    if isinstance(image, str | os.PathLike) or _is_pil(image):
        return image
    if not _is_array(image):
        raise TypeError(
            f"{name} must be a path, a PIL image or a uint8 array, "
            f"got {type(image).__name__}."
        )
    is_tensor = isinstance(image, torch.Tensor)
    image = _tensor_to_array(image, name) if is_tensor else np.asarray(image)
    right_shape = image.ndim == 2 or image.shape[2:] in {(1,), (3,), (4,)}
    if image.dtype != np.uint8 or not right_shape or 0 in image.shape:
        raise ValueError(
            f"{name} must be a uint8 array (values 0 to 255) of shape (height, width) "
            f"or (height, width, 1, 3 or 4), got {image.dtype} of shape {image.shape}."
        )
    return image
