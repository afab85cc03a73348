"""Packages of the extras, imported when they are first needed."""

import importlib
from importlib import metadata
from types import ModuleType

EXTRAS = {
    "safetensors": ("safetensors", "A model file"),
    "onnx": ("onnx", "to_onnx"),
    "pyarrow": ("parquet", "A Parquet file"),
    "matplotlib": ("plot", "A display"),
}
"""The extra that brings a package, and what needs it; the others are for embeddings."""


def import_optional(module: str) -> ModuleType:
    """Import a module; where it is missing, say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module.partition(".")[0], error) from error


def optional_version(package: str) -> str:
    """Return the version of an installed package, which is not imported for it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise _missing(package, error) from error


def _missing(package: str, error: Exception) -> ImportError:
    extra, user = EXTRAS.get(package, ("clip", "sklearn_fpe.embeddings"))
    return ImportError(
        f"{user} needs {package}, which cannot be imported ({error}). Install the "
        f'extra: pip install "sklearn-fpe[{extra}]"'
    )
