"""Model files: save and load estimators without running code."""

from sklearn_fpe._persistence._checks import ModelFileError
from sklearn_fpe._persistence._saving import load, save

__all__ = ["ModelFileError", "load", "save"]
