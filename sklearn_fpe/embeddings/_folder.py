"""Image folders: one folder a class."""

import os
import warnings
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sklearn_fpe.embeddings._images import UnreadableImageError, decode, read_source

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def load_image_folder(path, *, extensions=_EXTENSIONS, unreadable="keep"):
    """List the images of a folder that holds one folder per class.

    The label of ``path/cat/tom.png`` is ``"cat"``. Images may lie deeper inside the
    folder of their class. Files with other extensions are left out, as is everything
    whose name begins with a dot.

    Parameters
    ----------
    path : str or path-like
        The folder that holds the folders of the classes.
    extensions : sequence of str
        Endings of the files that are images, with their dot; upper and lower case are
        the same.
    unreadable : {"keep", "raise", "skip"}, default="keep"
        What to do about files that are no image. ``"keep"`` opens no file, so it lists
        them too. The others decode every file: ``"raise"`` stops at the first that
        fails, ``"skip"`` leaves out the file and its label, names it in one warning
        and lists it in ``skipped``.

    Returns
    -------
    folder : :class:`~sklearn.utils.Bunch`
        Sorted by class, then by path below it, whatever the file system's order:

        paths : ndarray of str of shape (n_samples,)
            The files, beginning with `path` as it was given.
        labels : ndarray of str of shape (n_samples,)
            The class of each file.
        classes : ndarray of str of shape (n_classes,)
            The classes, sorted.
        skipped : ndarray of str of shape (n_skipped,)
            The files left out by ``unreadable="skip"``.

    Raises
    ------
    FileNotFoundError
        If `path` is not a folder.
    ValueError
        If there are no folders in it, if images lie beside the folders, so have no
        class, or if a class has no images.
    OSError
        If a file is unreadable and ``unreadable="raise"``.

    See Also
    --------
    CLIPEmbedder : Takes the paths as its `X`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklearn_fpe.embeddings import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ["red/b.png", "red/a.png", "blue/c.png"]:
    ...         file = Path(folder, name)
    ...         file.parent.mkdir(exist_ok=True)
    ...         Image.new("RGB", (8, 8), file.parent.name).save(file)
    ...     images = load_image_folder(folder)
    >>> [Path(path).name for path in images.paths]
    ['c.png', 'a.png', 'b.png']
    >>> images.labels.tolist()
    ['blue', 'red', 'red']
    """
    extensions = _check_extensions(extensions)
    if unreadable not in {"keep", "raise", "skip"}:
        raise ValueError(
            f"unreadable must be 'keep', 'raise' or 'skip', got {unreadable!r}."
        )
    root = Path(path)
    folders = _class_folders(root, extensions)
    paths, labels, skipped = [], [], []
    for folder in folders:
        found = _images_below(folder, extensions)
        readable, failed = _split_readable(found, unreadable)
        if not readable:
            what = "readable image" if failed else f"file ending in {extensions}"
            raise ValueError(
                f"Every folder in path must hold an image, {str(folder)!r} holds no "
                f"{what}."
            )
        paths += readable
        labels += [folder.name] * len(readable)
        skipped += failed
    if skipped:
        _warn_skipped(skipped)
    return Bunch(
        paths=np.array(paths, dtype=str),
        labels=np.array(labels, dtype=str),
        classes=np.array([folder.name for folder in folders], dtype=str),
        skipped=np.array(skipped, dtype=str),
    )


def _check_extensions(extensions):
    right_type = not isinstance(extensions, str)
    extensions = tuple(extensions)
    if not (
        right_type
        and extensions
        and all(isinstance(e, str) and e.startswith(".") for e in extensions)
    ):
        raise ValueError(
            "extensions must be a sequence of endings that begin with a dot, such as "
            f"('.png', '.jpg'), got {extensions!r}."
        )
    return tuple(extension.lower() for extension in extensions)


def _is_image(path, extensions):
    hidden = path.name.startswith(".")
    return not hidden and path.name.lower().endswith(extensions) and path.is_file()


def _class_folders(root, extensions):
    """Folders of the classes, sorted by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"path must be a folder, got {str(root)!r}.")
    entries = sorted(root.iterdir(), key=lambda entry: entry.name)
    loose = [entry for entry in entries if _is_image(entry, extensions)]
    if loose:
        raise ValueError(
            f"Images must lie in a folder per class, path/class/name.png: {len(loose)} "
            f"lie in {str(root)!r} itself, {loose[0].name!r} the first of them."
        )
    folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    if not folders:
        raise ValueError(
            f"path must hold a folder per class, {str(root)!r} holds none."
        )
    return folders


def _images_below(folder, extensions):
    """Files of a class at any depth, sorted by their path below it."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files]
    found = [file for file in found if _is_image(file, extensions)]
    return [str(file) for file in sorted(found, key=lambda file: file.parts)]


def _split_readable(paths, unreadable):
    """Paths that decode, and those that do not."""
    if unreadable == "keep":
        return paths, []
    readable, failed = [], []
    for path in paths:
        try:
            decode(read_source(path, repr(path)), repr(path))
        except UnreadableImageError:
            if unreadable == "raise":
                raise
            failed.append(path)
        else:
            readable.append(path)
    return readable, failed


def _warn_skipped(skipped):
    warnings.warn(
        f"{len(skipped)} files are not readable as images and were left out: "
        + ", ".join(skipped),
        UserWarning,
        stacklevel=3,
    )
