"""Models outside of Python: files without code, and ONNX."""

from sklearn_fpe._io._checks import ModelFileError
from sklearn_fpe._io._onnx import to_onnx
from sklearn_fpe._io._saving import load, save

__all__ = ["ModelFileError", "load", "save", "to_onnx"]
