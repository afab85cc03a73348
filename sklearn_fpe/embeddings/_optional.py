"""Packages of the extra ``clip``, imported when they are first needed."""

import importlib
from importlib import metadata


def import_optional(module):
    """Import `module`; where it is missing, say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise _missing(module.partition(".")[0], exc) from exc


def optional_version(package):
    """Version of an installed package, which is not imported for it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as exc:
        raise _missing(package, exc) from exc


def _missing(package, exc):
    return ImportError(
        f"sklearn_fpe.embeddings needs {package}, which cannot be imported ({exc}). "
        'Install the extra: pip install "sklearn-fpe[clip]"'
    )
