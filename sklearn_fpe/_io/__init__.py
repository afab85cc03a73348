"""Models outside of Python: files without code, and ONNX."""

from sklearn_fpe._io._onnx import to_onnx
from sklearn_fpe._io._saving import load, save
from sklearn_fpe.nn._state import ModelFileError

__all__ = ["ModelFileError", "load", "save", "to_onnx"]
