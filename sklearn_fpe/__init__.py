"""Fixed Parameter Expansion for scikit-learn: more neurons, not more parameters."""

from sklearn_fpe._estimators._classifier import FPEClassifier
from sklearn_fpe._estimators._regressor import FPERegressor
from sklearn_fpe._estimators._search import FPESearchCV
from sklearn_fpe._estimators._transformer import FPETransformer
from sklearn_fpe._io import ModelFileError, load, save, to_onnx
from sklearn_fpe._version import __version__

__all__ = [
    "FPEClassifier",
    "FPERegressor",
    "FPESearchCV",
    "FPETransformer",
    "ModelFileError",
    "__version__",
    "load",
    "save",
    "to_onnx",
]
