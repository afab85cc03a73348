"""Packages of the extra ``clip``, imported when they are first needed."""

import importlib


def import_optional(module):
    """Import `module`; where it is missing, say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ImportError(
            f"sklearn_fpe.embeddings needs {module.partition('.')[0]}, which cannot be "
            f'imported ({exc}). Install the extra: pip install "sklearn-fpe[clip]"'
        ) from exc
