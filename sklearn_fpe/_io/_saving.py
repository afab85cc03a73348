"""Save an estimator to a file, load it from one."""

from sklearn.utils.validation import check_is_fitted

from sklearn_fpe._io import _file, _model
from sklearn_fpe._io._version1 import upgrade
from sklearn_fpe._version import __version__
from sklearn_fpe.nn._state import ModelFileError


def save(estimator, path):
    """Save a fitted estimator to a file that holds no code.

    The file is in the safetensors format. Its header describes the estimator in JSON,
    with a format version, the version of sklearn_fpe and a checksum; the rest is
    arrays. Masked layers store the kept weights, and the mask as bits, or as bytes if
    it is large and keeps little. There is no optimizer in the file.

    Parameters
    ----------
    estimator : FPEClassifier, FPERegressor or FPETransformer
        A fitted estimator, of no subclass. Rules of the library's own are saved by
        name; `split`, `prune`, `activation`, `scoring`, `random_state` and
        `skorch_callbacks` must be no function or object of your own. `memory` is not
        saved, nor is what ``set_callbacks``, ``set_output`` and the
        ``set_..._request`` methods set.
    path : str or path-like
        Where to write. The file is written beside it under a hidden name, and takes
        its place as a whole, so any number of threads and processes may save to one
        path and load from it. A file that is replaced keeps its mode, and a symbolic
        link is followed.

    Raises
    ------
    ValueError
        If a parameter or the class labels have no form without code, or the fitted
        state is none that :func:`load` would accept; or if `path` leads to a pipe, a
        socket or a device. Nothing is written then.
    OSError
        If the file cannot be written; what was there before is still there.
    TypeError
        If `estimator` is of another class.
    sklearn.exceptions.NotFittedError
        If `estimator` is not fitted.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_fpe import FPEClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FPEClassifier((8,), expansion=2, max_iter=20, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.safetensors")
    ...     save(clf, path)
    ...     loaded = load(path)
    >>> bool((loaded.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    if _model.CLASSES.get(type(estimator).__name__) is not type(estimator):
        raise TypeError(
            f"estimator must be one of {', '.join(_model.CLASSES)}, and no subclass, "
            f"because load could not bring one back; got a "
            f"{type(estimator).__name__}."
        )
    check_is_fitted(estimator)
    data = _file.pack(*_model.describe(estimator), __version__)
    try:
        _rebuilt(*_file.unpack(data))
    except ModelFileError as error:
        raise ValueError(f"The estimator cannot be saved: {error}") from error
    _file.write(path, data)


def load(path):
    """Load an estimator that :func:`save` saved, in this or an earlier format.

    Nothing of the file is run, and everything in it is checked: lengths against the
    size of the file before they are read, then types, shapes, indices, finite values
    and how the layers fit one another. Loading takes at most 64 MB of memory and ten
    times the bytes of the file. An estimator that comes back predicts finite numbers,
    or raises an error where float64 cannot hold them. The checksum is there to find
    accidents; it does not tell who made the file.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    estimator : FPEClassifier, FPERegressor or FPETransformer
        The fitted estimator, on the device that its parameter `device` means here. It
        predicts the same bits on the same kind of device, and ``partial_fit`` goes on
        where it was, with a fresh optimizer.

    Raises
    ------
    ModelFileError
        If the file is truncated, altered, of another or a later format, asks
        for more memory than its bytes allow, or describes no sound estimator. It is a
        ``ValueError``.
    OSError
        If the file cannot be read.
    ImportError
        If safetensors is not installed.

    Warns
    -----
    UserWarning
        If another version of sklearn_fpe saved the file, or its device is not there
        and the CPU takes its place.
    """
    return _rebuilt(*_file.read(path))


def _rebuilt(document, arrays, memory):
    model = document["model"]
    if document["format_version"] == 1:
        _model.put_arrays(model, arrays)
        model = upgrade(model, memory)
    else:
        _model.put_arrays(model, {f"learned.{name}": a for name, a in arrays.items()})
    return _model.rebuild(model, memory, document["version"])
