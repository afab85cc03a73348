"""Packages of the extras, imported when they are first needed."""

import importlib
from importlib import metadata
from types import ModuleType

NEEDS = {
    "safetensors": ("A model file", 'pip install "sklearn-fpe[safetensors]"'),
    "onnx": ("to_onnx", 'pip install "sklearn-fpe[onnx]"'),
    "pyarrow": ("A Parquet file", 'pip install "sklearn-fpe[parquet]"'),
    "matplotlib": ("A display", 'pip install "sklearn-fpe[plot]"'),
}
"""What needs a package, and the command that installs its extra."""

OTHERS = ("sklearn_fpe.embeddings", 'pip install "sklearn-fpe[clip]"')
"""What needs any other package, and the command."""


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
    user, command = NEEDS.get(package, OTHERS)
    return ImportError(
        f"{user} needs {package}, which cannot be imported ({error}). Install the "
        f"extra: {command}"
    )
