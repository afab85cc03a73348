"""Image folders: one folder a class."""

import os
import warnings
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sklearn_fpe._optional import import_optional
from sklearn_fpe.embeddings._images import (
    UnreadableImageError,
    decode,
    read_source,
    readable_formats,
)

# Made by operating systems and programs beside, or among, the files of a user. So is
# everything whose name begins with a dot.
_IGNORED = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found"),
    *("system volume information", "__pycache__", "thumbs.db", "desktop.ini"),
}


def load_image_folder(path, *, extensions=None, unreadable="keep"):
    """List the images of a folder that holds one folder per class.

    The label of ``path/cat/tom.png`` is ``"cat"``. Images may lie deeper inside the
    folder of their class.

    Parameters
    ----------
    path : str or path-like
        The folder that holds the folders of the classes.
    extensions : sequence of str or None, default=None
        Endings of the files that are images, with their dot; upper and lower case are
        the same. None: all that Pillow can decode in this environment, ``.jfif`` and
        ``.avif`` among them, but not PostScript, which would run Ghostscript. A file
        without one of the given endings is left out even with ``unreadable="raise"``.
    unreadable : {"keep", "raise", "skip"}, default="keep"
        What to do about files that are no image. ``"keep"`` opens no file and leaves
        files out by their name alone. The others decode every file: ``"raise"`` stops
        at the first file that would be left out, ``"skip"`` leaves it out with its
        label, and names all of them in one warning.

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
            Everything inside the folders of the classes that was left out.

    Raises
    ------
    FileNotFoundError
        If `path` is not a folder.
    ValueError
        If there are no folders in it, or images beside them, or a class has no images.
    OSError
        If a file would be left out and ``unreadable="raise"``.

    See Also
    --------
    CLIPEmbedder : Takes the paths as its `X`.

    Notes
    -----
    Left out, and listed in ``skipped``, are files with another ending, symbolic links
    that lead out of `path` (also where they are the folder of a class), links to
    folders inside of a class, and all but regular files. Files of operating systems
    (names that begin with a dot, ``__MACOSX``, ``Thumbs.db``, ...) are not listed.

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
    if unreadable not in {"keep", "raise", "skip"}:
        raise ValueError(
            f"unreadable must be 'keep', 'raise' or 'skip', got {unreadable!r}."
        )
    check = _FileCheck(path, extensions, unreadable)
    folders = _class_folders(Path(path), check.endings)
    paths, labels, skipped = [], [], []
    for folder in folders:
        found, left_out = check.split(check.list_files(folder))
        if not found:
            reason = f": {next(iter(left_out.values()))}" if left_out else "."
            raise ValueError(
                f"Every folder in path must hold an image, {str(folder)!r} holds "
                f"none{reason}"
            )
        paths += found
        labels += [folder.name] * len(found)
        skipped += left_out
    if skipped and unreadable == "skip":
        warnings.warn(
            f"{len(skipped)} files are not readable as images and were left out: "
            + ", ".join(skipped),
            UserWarning,
            stacklevel=2,
        )
    return Bunch(
        paths=np.array(paths, dtype=str),
        labels=np.array(labels, dtype=str),
        classes=np.array([folder.name for folder in folders], dtype=str),
        skipped=np.array(skipped, dtype=str),
    )


def list_images(path):
    """List the files below a folder that are images by their names, sorted by path."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"images must be a folder, got {str(path)!r}.")
    return _FileCheck(path, None, "keep").split(_walk(Path(path)))[0]


class _FileCheck:
    """Which files of a class are images, by the parameters of `load_image_folder`."""

    def __init__(self, path, extensions, unreadable):
        self.root = Path(os.path.realpath(path))
        self.unreadable = unreadable
        self.endings = _check_extensions(extensions)
        self.endings_given = extensions is not None

    def split(self, files):
        """Paths of the images among files, and the errors of other files by path."""
        found, left_out = [], {}
        for file in files:
            try:
                self._check(file)
            except UnreadableImageError as exc:
                asked = self.endings_given and isinstance(exc, _WrongEndingError)
                if self.unreadable == "raise" and not asked:
                    raise
                left_out[str(file)] = exc
            else:
                found.append(str(file))
        return found, left_out

    def list_files(self, folder):
        """Everything below a class but folders, sorted by its path."""
        return _walk(folder) if self._is_inside(folder) else [folder]

    def _check(self, file):
        name = repr(str(file))
        if file.is_symlink() and not self._is_inside(file):
            raise UnreadableImageError(f"{name} is a link that leads out of path.")
        if not file.is_file():
            raise UnreadableImageError(f"{name} is not a regular file.")
        if not file.name.lower().endswith(self.endings):
            raise _WrongEndingError(f"{name} has no ending of an image.")
        if self.unreadable != "keep":
            decode(read_source(file, name), name)

    def _is_inside(self, file):
        return self.root in Path(os.path.realpath(file)).parents


def _walk(folder):
    """Everything below a folder but folders, sorted by its path."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not _is_ignored(name)]
        links = [name for name in folders if os.path.islink(Path(parent, name))]
        names = [name for name in files if not _is_ignored(name)]
        found += [Path(parent, name) for name in names + links]
    return sorted(found, key=lambda file: file.parts)


class _WrongEndingError(UnreadableImageError):
    pass


def _check_extensions(extensions):
    """Check and lower endings; None stands for those of Pillow."""
    if extensions is None:
        formats = set(readable_formats())
        known = import_optional("PIL.Image").registered_extensions()
        return tuple(ending for ending, name in known.items() if name in formats)
    is_text, extensions = isinstance(extensions, str), tuple(extensions)
    dotted = all(isinstance(e, str) and e.startswith(".") for e in extensions)
    if is_text or not extensions or not dotted:
        raise ValueError(
            "extensions must be a sequence of endings that begin with a dot, such as "
            f"('.png', '.jpg'), got {extensions!r}."
        )
    return tuple(extension.lower() for extension in extensions)


def _class_folders(root, endings):
    """Folders of the classes, sorted by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"path must be a folder, got {str(root)!r}.")
    entries = [entry for entry in root.iterdir() if not _is_ignored(entry.name)]
    entries.sort(key=lambda entry: entry.name)
    loose = [e for e in entries if e.name.lower().endswith(endings) and e.is_file()]
    if loose:
        raise ValueError(
            f"Images must lie in a folder per class, path/class/name.png: {len(loose)} "
            f"lie in {str(root)!r} itself, {loose[0].name!r} the first of them."
        )
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise ValueError(
            f"path must hold a folder per class, {str(root)!r} holds none."
        )
    return folders


def _is_ignored(name):
    return name.startswith(".") or name.lower() in _IGNORED


def _raise(error):
    raise error
